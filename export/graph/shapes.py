"""Shapes of what onnxruntime's own operators yield, for tools that know the standard operators alone.

onnx infers nothing behind an operator it doesn't know, so a graph of fixed sizes would look dynamic to a compiler. Each
such operator is exchanged for a standard one of the same shape, in a copy that is then thrown away.
"""

from typing import Any

import onnx
from onnx import helper

# These give what their first input is.
ELEMENTWISE = ("MoE", "QMoE", "QuickGelu", "SimplifiedLayerNormalization")
FUSED = (*ELEMENTWISE, "FusedMatMul", "GatherBlockQuantized", "MatMulNBits")


def fused_shapes(model: Any, compute: int) -> list[Any]:
    """The value infos of all results of onnxruntime's operators; `compute` is the type they yield."""
    if not any(node.op_type in FUSED for node in model.graph.node):
        return []
    shadow = onnx.ModelProto()
    shadow.CopyFrom(model)
    graph = shadow.graph
    results = set()
    stored = {proto.name: proto.dims for proto in graph.initializer}
    for node in graph.node:
        if node.op_type not in FUSED:
            continue
        results.add(node.output[0])
        kind, inputs, name = node.op_type, list(node.input), node.output[0]
        sizes = {a.name: a.i for a in node.attribute}
        node.Clear()
        if kind in ELEMENTWISE:
            node.CopyFrom(helper.make_node("Identity", inputs[:1], [name]))
        elif kind == "FusedMatMul":
            node.CopyFrom(helper.make_node("Einsum", inputs, [name], equation="...ij,...kj->...ik"))
        elif kind == "GatherBlockQuantized":
            rows, row_bytes = stored[inputs[0]]
            table = helper.make_tensor_value_info(f"{name}.table", compute, [rows, 8 * row_bytes // sizes["bits"]])
            graph.input.append(table)
            node.CopyFrom(helper.make_node("Gather", [table.name, inputs[1]], [name], axis=0))
        else:
            weight = helper.make_tensor_value_info(f"{name}.weight", compute, [sizes["K"], sizes["N"]])
            graph.input.append(weight)
            node.CopyFrom(helper.make_node("MatMul", [inputs[0], weight.name], [name]))
    inferred = onnx.shape_inference.infer_shapes(shadow, strict_mode=True)
    return [info for info in inferred.graph.value_info if info.name in results]
