"""Small decoder graphs as other exporters write them, made by hand: sizes computed once for all blocks, k built in.

One attention head, no norm weights; numbers inside the file. Equal weights per block whatever blocks and k are asked
for, so that a derived graph can be compared with one made for that setting.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, EXPERTS, OPSET = 11, 6, 18
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class Maker:
    """Nodes and constants by name; equal constants are one, as optimizers leave them."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.values: dict[str, Any] = {}

    def __call__(self, op: str, *inputs: Any, results: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [self.constant(np.array(i)) if not isinstance(i, str) else i for i in inputs]
        outputs = [f"{op.lower()}_{len(self.nodes)}_{n}" for n in range(results)]
        self.nodes.append(helper.make_node(op, names, outputs, domain=domain, **attributes))
        return outputs[0] if results == 1 else outputs

    def constant(self, value: Any) -> str:
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self.constants:
            self.constants[key] = f"const_{len(self.constants)}"
            self.values[self.constants[key]] = numpy_helper.from_array(value, self.constants[key])
        return self.constants[key]


def write_foreign(
    path: Path,
    ks: Sequence[int],
    blocks: Sequence[int] | None = None,
    *,
    hidden: int = 4,
    fused: bool = False,
    shared: bool = True,
    tile: bool = False,
) -> Path:
    """A decoder of `blocks` (numbers that choose the weights), block i with `ks[i]`.

    fused: the residual sum inside the norm. shared: sizes of later blocks are taken from the first one, the last
    block's cache tells the batch. tile: tokens are repeated k times, else slots are divided by k.
    """
    chosen = list(range(len(ks)) if blocks is None else blocks)
    g = Maker()
    names = [f"input.past_key_values.layers.{i}.{part}" for i in range(len(ks)) for part in ("keys", "values")]
    batch = g("Shape", names[-2], start=0, end=1)
    sequence = g("Shape", "input_ids", start=1, end=2)
    slots: dict[int, str] = {}
    table = np.random.default_rng(99).standard_normal((VOCABULARY, hidden)).astype(np.float32)
    stream = g("Gather", table, "input_ids")
    allowed = _mask(g, names[-1], sequence)
    gain = np.linspace(0.5, 1.5, hidden, dtype=np.float32)
    gains = [gain + number / 8 for number in chosen] + [gain]  # before each attention, and at the end
    normed = g("SimplifiedLayerNormalization", stream, gains[0], axis=-1, epsilon=1e-5)
    outputs = []
    sort_size: dict[int, str] = {}
    for i, (k, number) in enumerate(zip(ks, chosen, strict=True)):
        rng = np.random.default_rng(number)

        def draw(*shape: int, rng: np.random.Generator = rng) -> Any:
            return rng.standard_normal(shape).astype(np.float32)

        q, key, value = (g("Unsqueeze", g("MatMul", normed, draw(hidden, hidden)), [1]) for _ in range(3))
        keys, values = (
            g("Concat", f"input.past_key_values.layers.{i}.{part}", new, axis=-2)
            for part, new in (("keys", key), ("values", value))
        )
        outputs += [keys, values]
        scores = g("Add", g("MatMul", q, g("Transpose", keys, perm=[0, 1, 3, 2])), allowed)
        mixed = g("Squeeze", g("MatMul", g("Softmax", scores, axis=-1), values), [1])
        stream, normed = _add_norm(g, mixed, stream, gain - number / 8, fused)
        if shared and k not in slots:
            slots[k] = g("Mul", g("Mul", k, g("Squeeze", batch)), g("Squeeze", sequence))
        count = slots[k] if shared else g("Mul", g("Mul", k, g("Squeeze", batch)), g("Squeeze", sequence))
        flat = g("Reshape", normed, [-1, hidden])
        probabilities = g("Softmax", g("MatMul", flat, draw(hidden, EXPERTS)), axis=-1)
        weights, experts = g("TopK", probabilities, [k], results=2, axis=-1)
        experts = g("Reshape", experts, [-1])
        size = sort_size.get(k) if shared else None
        size = size or g("Shape", experts)
        sort_size[k] = size
        mix = _tiled if tile else _grouped
        up, down = draw(EXPERTS, hidden, hidden), draw(EXPERTS, hidden, hidden)
        delta = mix(g, flat, experts, size, count, k, up, down)
        delta = g("Mul", g("Reshape", delta, [-1, k, hidden]), g("Unsqueeze", weights, [-1]))
        delta = g("Reshape", g("ReduceSum", delta, [1], keepdims=0), g("Concat", batch, sequence, [hidden], axis=0))
        stream, normed = _add_norm(g, delta, stream, gains[i + 1], fused)
    logits = g("MatMul", normed, np.random.default_rng(98).standard_normal((hidden, VOCABULARY)).astype(np.float32))
    finals = [n.replace("input.", "output.") for n in names]
    g.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    g.nodes += [helper.make_node("Identity", [made], [name]) for made, name in zip(outputs, finals, strict=True)]
    graph = helper.make_graph(
        g.nodes,
        "main",
        [
            helper.make_tensor_value_info("input_ids", INT64, ["b", "s"]),
            *(helper.make_tensor_value_info(n, FLOAT, ["b", "1", "p", str(hidden)]) for n in names),
        ],
        [
            helper.make_tensor_value_info("logits", FLOAT, ["b", "s", VOCABULARY]),
            *(helper.make_tensor_value_info(n, FLOAT, ["b", 1, "p + s", hidden]) for n in finals),
        ],
        initializer=list(g.values.values()),
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def _add_norm(g: Maker, delta: str, stream: str, gain: Any, fused: bool) -> tuple[str, str]:
    if fused:
        outputs = [f"{delta}_normed", "", "", f"{delta}_sum"]
        inputs = [delta, stream, g.constant(gain)]
        kind = "SkipSimplifiedLayerNormalization"
        g.nodes.append(helper.make_node(kind, inputs, outputs, domain="com.microsoft", epsilon=1e-5))
        return outputs[3], outputs[0]
    total = g("Add", stream, delta)
    return total, g("SimplifiedLayerNormalization", total, gain, axis=-1, epsilon=1e-5)


def _mask(g: Maker, cache: str, sequence: str) -> str:
    """[s, p + s]: 0 where a token may look, else very low."""
    past = g("Squeeze", g("Shape", cache, start=2, end=3))
    new = g("Squeeze", sequence)
    total = g("Add", past, new)
    columns = g("Range", 0, total, 1)
    rows = g("Unsqueeze", g("Add", g("Range", 0, new, 1), past), [1])
    return g("Where", g("LessOrEqual", columns, rows), np.float32(0), np.float32(-1e9))


def _grouped(g: Maker, x: str, experts: str, size: str, count: str, k: int, up: Any, down: Any) -> str:
    """Slots sorted by expert; a floor division as exporters spell it."""
    _, order = g("TopK", experts, size, results=2, axis=-1, largest=0)
    odd = g("And", g("Less", order, 0), g("Cast", g("Mod", order, k), to=TensorProto.BOOL))
    rows = g("Sub", g("Div", order, k), g("Cast", odd, to=INT64))
    rows = g("GatherND", x, g("Unsqueeze", rows, [-1]))
    back = g("ScatterND", g("Expand", 0, size), g("Unsqueeze", order, [-1]), g("Range", 0, count, 1))
    chosen = g("GatherND", experts, g("Unsqueeze", order, [-1]))
    made = _experts(g, rows, chosen, up, down)
    return g("GatherND", made, g("Unsqueeze", back, [-1]))


def _tiled(g: Maker, x: str, experts: str, size: str, count: str, k: int, up: Any, down: Any) -> str:
    """Tokens repeated per slot."""
    width = up.shape[1]
    rows = g("Reshape", g("Tile", g("Unsqueeze", x, [1]), [1, k, 1]), [-1, width])
    return _experts(g, rows, experts, up, down)


def _experts(g: Maker, rows: str, experts: str, up: Any, down: Any) -> str:
    hidden = g("MatMul", g("Gather", up, experts), g("Unsqueeze", rows, [-1]))
    hidden = g("Mul", hidden, g("Sigmoid", hidden))
    return g("Squeeze", g("MatMul", g("Gather", down, experts), hidden), [-1])
