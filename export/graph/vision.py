"""`vision.onnx`: crops of one image -> image features, in the order of `feature_index`.

CLIP's tower up to the last block that is used, then pooling and projector for the wanted 2x2 windows only. A static
graph has the index inside.
c crops, P patches per crop, t wanted windows, v tower width, L tapped blocks.
"""

import numpy as np

from export.graph.attention import scaled_products
from export.graph.builder import CONTRIB, EARLIER, FLOAT, INT64, Graph
from export.graph.norm import layer_norm
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.forms import Form
from transform.vision_tower import Tower, read_tower


def vision_graph(checkpoint: Checkpoint, crops: int | None, form: Form, kept: Array | None = None) -> Graph:
    """Tower, pooling and projector; `crops` fixes the number of crops, the global view included, `kept` the index."""
    tower = read_tower(checkpoint)
    patches = tower.grid**2
    count: int | str = "crops" if crops is None else crops
    g = Graph("vision", form, fixed=kept is not None, opset=EARLIER)
    images = g.input("images", FLOAT, [count, patches, tower.patch_values])
    masks = g.input("image_masks", FLOAT, [count, patches])
    wanted = g.input("feature_index", INT64, ["features"]) if kept is None else g.constant(kept.astype(np.int64))

    taps = _tower_outputs(g, checkpoint, tower, g.cast(images), None if kept is None else crops)  # L x [c, P, v]
    width = len(taps) * checkpoint.tensor("vision.class").shape[0]
    features = g.op("Reshape", g.op("Concat", *taps, axis=2), g.ints(-1, width))  # [c*P, L*v]

    crop = g.op("Div", wanted, g.int(tower.windows))
    window = g.op("Sub", wanted, g.op("Mul", crop, g.int(tower.windows)))
    inside = g.op("Gather", g.constant(tower.window_patches()), window, axis=0)  # [t, 4]
    first = g.op("Unsqueeze", g.op("Mul", crop, g.int(patches)), g.ints(1))
    places = g.op("Add", inside, first)  # [t, 4]
    features = g.op("Gather", features, places, axis=0)  # [t, 4, L*v]

    # A crop that holds -1.0 anywhere is batch padding. Decided on float32 pixels: in 16 bits real ones round to it.
    padding = g.op("Cast", g.op("Equal", images, g.float32(-1.0)), to=g.compute)
    real = g.op("Sub", g.float(1.0), g.op("ReduceMax", padding, axes=[1, 2], keepdims=1))  # [c, 1, 1]
    features = g.op("Mul", features, g.op("Gather", real, crop, axis=0))
    features = _add_pad_embedding(g, checkpoint, features, masks, places)
    pooled = _pool(g, checkpoint, tower, features)
    gate = g.linear(pooled, checkpoint.tensor("projector.gate"))
    gate = g.op("Mul", gate, g.op("Sigmoid", gate))
    up = g.linear(pooled, checkpoint.tensor("projector.up"))
    result = g.linear(g.op("Mul", gate, up), checkpoint.tensor("projector.down"))
    number: int | str = "features" if kept is None else len(kept)
    g.output("image_features", result, g.compute, [number, checkpoint.settings.hidden])
    return g


def _tower_outputs(g: Graph, checkpoint: Checkpoint, tower: Tower, images: str, crops: int | None) -> list[str]:
    """The tapped blocks' outputs without class token; blocks after the last tap are never computed."""
    width = checkpoint.tensor("vision.class").shape[0]
    patches = tower.grid**2
    flat = g.op("Reshape", images, g.ints(-1, tower.patch_values))
    x = g.op("Reshape", g.linear(flat, checkpoint.tensor("vision.patch")), g.ints(-1, patches, width))
    if crops is None:
        shape = g.op("Concat", g.op("Shape", images, start=0, end=1), g.ints(1, width), axis=0)
    else:
        shape = g.ints(crops, 1, width)
    x = g.op("Concat", g.op("Expand", g.weight(checkpoint.tensor("vision.class")), shape), x, axis=1)
    x = g.op("Add", x, g.weight(checkpoint.tensor("vision.position")))
    pre = [checkpoint.tensor(f"vision.pre_norm.{part}") for part in ("weight", "bias")]
    x = g.op("Reshape", layer_norm(g, x, pre[0], pre[1], tower.eps), g.ints(-1, width))  # [c*(P+1), v]
    outputs: dict[int, str] = {}
    for j in range(max(tower.taps) + 1):
        x = _block(g, checkpoint, tower, j, x, patches + 1)
        if j in tower.taps:
            whole = g.op("Reshape", x, g.ints(-1, patches + 1, width))
            outputs[j] = g.op("Slice", whole, g.ints(1), g.ints(patches + 1), g.ints(1))
    return [outputs[j] for j in tower.taps]


def _block(g: Graph, checkpoint: Checkpoint, tower: Tower, j: int, x: str, tokens: int) -> str:
    """One pre-norm block on x [c*tokens, v]."""

    def linear(value: str, part: str) -> str:
        weight, bias = (checkpoint.tensor(f"vision.{part}.{kind}", j=j) for kind in ("weight", "bias"))
        return g.linear(value, weight, bias)

    def norm(value: str, part: str) -> str:
        weight, bias = (checkpoint.tensor(f"vision.{part}.{kind}", j=j) for kind in ("weight", "bias"))
        return layer_norm(g, value, weight, bias, tower.eps)

    inner = checkpoint.tensor("vision.q.weight", j=j).shape[0]  # heads * head width, which need not be v
    normed = norm(x, "norm1")
    q, k, v = (linear(normed, part) for part in "qkv")
    mixed = _attend(g, q, k, v, tower.heads, inner, tokens, tokens)
    x = g.op("Add", x, linear(mixed, "out"))
    hidden = linear(norm(x, "norm2"), "fc1")
    return g.op("Add", x, linear(_quick_gelu(g, hidden), "fc2"))


def _quick_gelu(g: Graph, x: str) -> str:
    """x sigmoid(1.702 x)."""
    if g.fused:
        return g.op("QuickGelu", x, domain=CONTRIB, alpha=1.702)
    return g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, g.float(1.702))))


def _attend(g: Graph, q: str, k: str, v: str, heads: int, width: int, queries: int, keys: int) -> str:
    """Unmasked attention; q [B*queries, width], k and v [B*keys, width] -> [B*queries, width]."""
    head = width // heads
    q = g.op("Reshape", q, g.ints(-1, queries, heads, head))
    k, v = (g.op("Reshape", value, g.ints(-1, keys, heads, head)) for value in (k, v))
    q, k, v = (g.op("Transpose", value, perm=[0, 2, 1, 3]) for value in (q, k, v))
    scores = scaled_products(g, q, k, head**-0.5, 4)
    mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
    return g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(-1, width))


def _add_pad_embedding(g: Graph, checkpoint: Checkpoint, features: str, masks: str, places: str) -> str:
    """Row 0 where a patch is all padding (mask 0), row 1 where it is partly so; a mask of -1 counts as partly."""
    pad = g.weight(checkpoint.tensor("vision.pad"))  # [2, L*v]
    mask = g.op("Gather", g.op("Reshape", masks, g.ints(-1)), places, axis=0)
    mask = g.op("Unsqueeze", mask, g.ints(2))  # [t, 4, 1]
    empty = g.op("Equal", mask, g.float32(0.0))
    partial = g.op("And", g.op("Less", mask, g.float32(1.0)), g.op("Not", empty))
    for row, where in enumerate((empty, partial)):
        value = g.op("Gather", pad, g.int(row), axis=0)
        features = g.op("Add", features, g.op("Mul", g.op("Cast", where, to=g.compute), value))
    return features


def _pool(g: Graph, checkpoint: Checkpoint, tower: Tower, features: str) -> str:
    """One attention per window: the mean of its patches asks all of them. [t, 4, L*v] -> [t, v]."""

    def linear(value: str, part: str) -> str:
        return g.linear(value, checkpoint.tensor(f"pool.{part}.weight"), checkpoint.tensor(f"pool.{part}.bias"))

    inner, outer = checkpoint.tensor("pool.q.weight").shape
    query = g.op("ReduceMean", features, axes=[1], keepdims=0)
    flat = g.op("Reshape", features, g.ints(-1, outer))
    q, k, v = linear(query, "q"), linear(flat, "k"), linear(flat, "v")
    size = tower.pool[0] * tower.pool[1]
    return linear(_attend(g, q, k, v, tower.heads, inner, 1, size), "out")
