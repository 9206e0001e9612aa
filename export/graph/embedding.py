"""`embedding.onnx`: token ids and image features -> input embeddings of an image model.

Feature j is added to the j-th image-patch token, row by row over the batch; zero features are fine. The two tables
stay two: joining them would copy the larger one. Static graphs take one row of fixed length, and no features where
they have no place: while tokens are generated.
"""

from export.graph.builder import EARLIER, INT64, Graph
from transform.checkpoint import Checkpoint
from transform.forms import Form


def embedding_graph(
    checkpoint: Checkpoint, image_patch: int, form: Form, sequence: int | None = None, features: int = 0
) -> Graph:
    """Lookup in both tables, plus the image features; `sequence` and `features` fix their numbers."""
    base, extra = checkpoint.tensor("embedding"), checkpoint.tensor("embedding.extra")
    width = checkpoint.settings.hidden
    g = Graph("embedding", form, fixed=sequence is not None, opset=EARLIER)
    shape: list[int | str] = ["batch", "sequence"] if sequence is None else [1, sequence]
    ids = g.input("input_ids", INT64, shape)
    clipped = g.op("Max", ids, g.int(0))  # padding of -1 is embedded as id 0
    # Not clipped above the second table: an id beyond both is an error, not some other token.
    low = g.rows(base, g.op("Min", clipped, g.int(base.shape[0] - 1)))
    over = g.op("Max", g.op("Sub", clipped, g.int(base.shape[0])), g.int(0))
    high = g.rows(extra, over)
    in_base = g.op("Unsqueeze", g.op("Less", clipped, g.int(base.shape[0])), g.ints(2))
    embeddings = g.op("Where", in_base, low, high)  # [batch, sequence, d]
    if sequence is None or features:
        embeddings = g.op("Add", embeddings, _added(g, ids, image_patch, width, sequence, features))
    g.output("inputs_embeds", embeddings, g.compute, [*shape, width])
    return g


def _added(g: Graph, ids: str, image_patch: int, width: int, sequence: int | None, fixed: int) -> str:
    """The features at their places, zero elsewhere: [batch, sequence, d]."""
    features = g.input("image_features", g.compute, [fixed or "features", width])
    flat = g.op("Reshape", ids, g.ints(-1))
    patch = g.op("Equal", flat, g.int(image_patch))
    rank = g.op("Sub", g.op("CumSum", g.op("Cast", patch, to=INT64), g.int(0)), g.int(1))
    # One zero row at the end serves all tokens without a feature: text, and patch tokens the model itself generates.
    count = g.ints(fixed) if fixed else g.op("Shape", features, start=0, end=1)
    at = g.op("Min", g.op("Where", patch, rank, count), count)
    zero = g.op("Expand", g.float(0.0), g.ints(1, width))
    added = g.op("Gather", g.op("Concat", features, zero, axis=0), at, axis=0)
    if sequence is not None:
        return g.op("Reshape", added, g.ints(1, sequence, width))
    return g.op("Reshape", added, g.op("Concat", g.op("Shape", ids), g.ints(width), axis=0))
