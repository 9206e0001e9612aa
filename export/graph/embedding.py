"""`embedding.onnx`: token ids and image features -> input embeddings of an image model.

Feature j is added to the j-th image-patch token, row by row over the batch; zero features are fine. The two tables
stay two: joining them would copy the larger one.
"""

from export.graph.builder import INT64, Graph
from transform.checkpoint import Checkpoint


def embedding_graph(checkpoint: Checkpoint, image_patch: int, form: str = "cpu") -> Graph:
    """Lookup in both tables, plus the image features."""
    base, extra = checkpoint.tensor("embedding"), checkpoint.tensor("embedding.extra")
    width = checkpoint.settings.hidden
    g = Graph("embedding", form)
    ids = g.input("input_ids", INT64, ["batch", "sequence"])
    features = g.input("image_features", g.compute, ["features", width])

    clipped = g.op("Max", ids, g.int(0))  # padding of -1 is embedded as id 0
    # Not clipped above the second table: an id beyond both is an error, not some other token.
    low = g.rows(base, g.op("Min", clipped, g.int(base.shape[0] - 1)))
    over = g.op("Max", g.op("Sub", clipped, g.int(base.shape[0])), g.int(0))
    high = g.rows(extra, over)
    in_base = g.op("Unsqueeze", g.op("Less", clipped, g.int(base.shape[0])), g.ints(2))
    embeddings = g.op("Where", in_base, low, high)  # [batch, sequence, d]

    shape = g.op("Shape", ids)
    flat = g.op("Reshape", ids, g.ints(-1))
    patch = g.op("Equal", flat, g.int(image_patch))
    rank = g.op("Sub", g.op("CumSum", g.op("Cast", patch, to=INT64), g.int(0)), g.int(1))
    # One zero row at the end serves all tokens without a feature: text, and patch tokens the model itself generates.
    count = g.op("Shape", features, start=0, end=1)
    at = g.op("Min", g.op("Where", patch, rank, count), count)
    zero = g.op("Expand", g.float(0.0), g.ints(1, width))
    added = g.op("Gather", g.op("Concat", features, zero, axis=0), at, axis=0)
    added = g.op("Reshape", added, g.op("Concat", shape, g.ints(width), axis=0))
    g.output("inputs_embeds", g.op("Add", embeddings, added), g.compute, ["batch", "sequence", width])
    return g
