"""What the device's QMoE accepts and means. Facts, not checks: no form of ours runs quantised experts on a GPU.

Each layout it takes is compared with all four readings: gate and up in alternating or in separate rows, the chosen
weights renormalised or not.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from export.graph.builder import CONTRIB
from export.numpy_run.arithmetic import softmax
from export.numpy_run.experts import mixed, top_k
from export.run.session import open_session
from tests.gpu.rows import PROVIDER, Context, Row
from transform.arrays import Array
from transform.packing import decode, encode

E, H, I, K, N = 8, 256, 128, 2, 5  # noqa: E741
LAYOUTS = {"alternating rows": 1, "separate halves": 2, "three matrices": 0}
FUSED_LAYOUTS = tuple(layout for layout, fusion in LAYOUTS.items() if fusion)
BLOCKS = (0, 32, 128)  # 0: one scale per row


def measure(ctx: Context) -> Iterator[Row]:
    """Every layout and use of router_weights, codes as they are taken by default and as `weights_prepacked` 0 says."""
    dtype: Any = np.float16 if ctx.cuda else np.float32
    random = np.random.default_rng(5)
    x = random.standard_normal((N, H)).astype(dtype)
    logits = (2 * random.standard_normal((N, E))).astype(dtype)
    drawn = {part: random.standard_normal((E, *shape)).astype(np.float32) / 8 for part, shape in
             {"gate": (I, H), "up": (I, H), "down": (H, I)}.items()}  # fmt: skip
    cases = [*product(LAYOUTS, BLOCKS[1:2], (False,)), *product(FUSED_LAYOUTS, BLOCKS, (True,))]
    for bits, (layout, block, raw), router in product((4, 8), cases, (False, True)):
        what = f"{bits} bits, {layout}, {f'blocks of {block}' if block else 'a scale per row'}"
        what += (", weights_prepacked 0" if raw else "") + (", router_weights" if router else "")
        weights = arrange(drawn, LAYOUTS[layout], bits, block, dtype)
        path = ctx.work / "qmoe.onnx"
        made = model(weights, LAYOUTS[layout], bits, block, router, dtype)
        if raw:
            made.graph.node[0].attribute.append(helper.make_attribute("weights_prepacked", 0))
        path.write_bytes(made.SerializeToString())
        feed = {"x": x, "logits": logits} | ({"router": softmax(logits).astype(dtype)} if router else {})
        try:
            found = open_anywhere(path, ctx).run(None, feed)[0].astype(np.float32)
        except Exception as error:  # whatever it says is the fact
            yield Row(what, "refused: " + str(error).strip().splitlines()[0][-160:])
            continue
        yield Row(what, closest(found, x, logits, weights, bits, block))


def open_anywhere(path: Path, ctx: Context) -> Any:
    """A session that doesn't know which layouts knobcast would refuse."""
    import onnxruntime

    if not ctx.cuda:
        return open_session(path, {}, threads=1)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=[tuple(PROVIDER)], enable_fallback=0)


def arrange(drawn: dict[str, Array], fusion: int, bits: int, block: int, dtype: Any) -> dict[str, tuple[Array, Array]]:
    """Codes and scales of fc1, fc2 and maybe fc3."""
    if fusion == 1:
        both = np.stack((drawn["gate"], drawn["up"]), axis=2).reshape(E, 2 * I, H)
    else:
        both = np.concatenate((drawn["gate"], drawn["up"]), axis=1)
    stacks = {"fc1": drawn["gate"] if fusion == 0 else both, "fc2": drawn["down"]}
    stacks |= {"fc3": drawn["up"]} if fusion == 0 else {}
    packed = {}
    for name, values in stacks.items():
        rows, columns = values.shape[1:]
        codes, scales = encode(values.reshape(-1, columns), bits, block or columns, np.dtype(dtype).str, name)
        scales = scales.reshape((E, rows, -1) if block else (E, rows))
        packed[name] = codes.reshape(E, rows, -1), scales
    return packed


def model(weights: dict[str, tuple[Array, Array]], fusion: int, bits: int, block: int, router: bool, dtype: Any) -> Any:
    """One QMoE."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    initializers, operands = [], ["x", "logits"]
    for name, pair in weights.items():
        for part, values in zip(("codes", "scales"), pair, strict=True):
            initializers.append(onnx.numpy_helper.from_array(values, f"{name}.{part}"))
            operands.append(f"{name}.{part}")
        operands.append("")
    shapes: dict[str, list[int | str]] = {"x": ["n", H], "logits": ["n", E]}
    if router:
        operands += [""] * (14 - len(operands)) + ["router"]
        shapes["router"] = ["n", E]
    attributes: dict[str, Any] = {"activation_type": "silu"}
    if fusion:
        attributes = {"activation_type": "swiglu", "swiglu_fusion": fusion}
        attributes |= {"activation_alpha": 1.0, "activation_beta": 0.0}
    if block:
        attributes["block_size"] = block
    node = helper.make_node(
        "QMoE", operands, ["y"], domain=CONTRIB, k=K, expert_weight_bits=bits, normalize_routing_weights=0, **attributes
    )
    given = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    wanted = [helper.make_tensor_value_info("y", kind, ["n", H])]
    graph = helper.make_graph([node], "qmoe", given, wanted, initializers)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def closest(
    found: Array, x: Array, logits: Array, weights: dict[str, tuple[Array, Array]], bits: int, block: int
) -> str:
    """Which reading the result is nearest to, and how near."""
    values = {
        name: np.stack([
            decode(c, s.reshape(len(c), -1), bits, c.shape[-1] * 8 // bits) for c, s in zip(*pair, strict=True)
        ])
        for name, pair in weights.items()
    }  # fmt: skip
    chosen = top_k(logits.astype(np.float32), K)
    plain = np.take_along_axis(softmax(logits), chosen, axis=1)
    third = values["fc3"].__getitem__ if "fc3" in values else None
    readings = {}
    for rows, share in product(("alternating", "separate"), ("not renormalised", "renormalised")):
        if third is not None and rows == "separate":
            continue
        shares = plain if share == "not renormalised" else plain / plain.sum(axis=1, keepdims=True)
        attributes: dict[str, Any] = {"activation_type": "silu"}
        if third is None:
            fusion = 1 if rows == "alternating" else 2
            attributes = {"activation_type": "swiglu", "activation_alpha": 1.0, "activation_beta": 0.0}
            attributes["swiglu_fusion"] = fusion
        fc1, fc2 = values["fc1"].__getitem__, values["fc2"].__getitem__
        meant = mixed(x.astype(np.float32), chosen, shares, fc1, fc2, third, **attributes)
        name = f"{rows}, {share}" if third is None else share
        readings[name] = float(np.abs(found - meant).max() / np.abs(meant).max())
    best = min(readings, key=lambda name: readings[name])
    word = "reads" if readings[best] < 5e-2 else "reads none of them; nearest is"
    return f"{word} {best}: {readings[best]:.2g}"
