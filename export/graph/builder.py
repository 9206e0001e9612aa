"""A small builder for ONNX graphs whose weights stay where they are, inside the variant's `.safetensors` files.

An operator call returns the names of its results, so a graph reads like the mathematics it stands for. Nothing here
knows a model, and nothing reads a weight: an initializer is a name, a shape, a file, an offset and a length.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from transform.checkpoint import Tensor

OPSET = 18  # ordinary ai.onnx operators only, old enough for every onnxruntime in use
IR_VERSION = 9
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}

Shape = Sequence[int | str]


class Graph:
    """One graph under construction; values are strings, as ONNX has them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._initializers: dict[str, Any] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._values = 0

    def input(self, name: str, dtype: int, shape: Shape) -> str:
        """Declare an input."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, value: str, dtype: int, shape: Shape) -> None:
        """Give a value its public name and declare it an output."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Append an operator with one result."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, results: int, *inputs: str, **attributes: object) -> list[str]:
        """Append an operator with several results."""
        names = [self._fresh() for _ in range(results)]
        self._nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def choose(self, condition: str, then: Callable[[], str], otherwise: Callable[[], str]) -> str:
        """`If`: only the chosen branch runs, and only then does it take memory. Branches yield one float tensor."""
        return self.op("If", condition, then_branch=self._branch(then), else_branch=self._branch(otherwise))

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        """A small constant inside the graph; equal ones are stored once."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"c{len(self._constants)}"
            self._constants[key] = name
            self._initializers[name] = numpy_helper.from_array(array, name)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant(np.array(values, np.int64))

    def int(self, value: int) -> str:
        """An int64 scalar."""
        return self.constant(np.array(value, np.int64))

    def float(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def stored(self, tensor: Tensor) -> str:
        """A weight as it is stored, in place."""
        if tensor.name not in self._initializers:
            proto = TensorProto()
            proto.name = tensor.name
            proto.data_type = TYPES[tensor.stored]
            proto.dims.extend(tensor.shape)
            proto.data_location = TensorProto.EXTERNAL
            for key, value in (("location", tensor.file.name), ("offset", tensor.start), ("length", tensor.nbytes)):
                entry = proto.external_data.add()
                entry.key, entry.value = key, str(value)
            self._initializers[tensor.name] = proto
        return tensor.name

    def weight(self, tensor: Tensor) -> str:
        """A weight to compute with: float32 in place, 16 bits through a cast at the place of use."""
        name = self.stored(tensor)
        return name if tensor.stored == "F32" else self.op("Cast", name, to=FLOAT)

    def linear(self, x: str, weight: Tensor, bias: Tensor | None = None) -> str:
        """x W^T (+ b) for x [n, in] and W [out, in]: the stored layout, so that no weight is ever transposed."""
        operands = [x, self.weight(weight)] + ([self.weight(bias)] if bias else [])
        return self.op("Gemm", *operands, transB=1)

    def model(self) -> Any:
        """The finished model."""
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, initializer=list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="knobcast")

    def write(self, path: Path) -> None:
        """Serialise; equal graphs give equal bytes."""
        path.write_bytes(self.model().SerializeToString(deterministic=True))

    def _fresh(self) -> str:
        self._values += 1
        return f"v{self._values}"

    def _branch(self, build: Callable[[], str]) -> Any:
        outer, self._nodes = self._nodes, []
        try:
            result = build()
            info = onnx.ValueInfoProto(name=result)
            info.type.tensor_type.elem_type = FLOAT
            return helper.make_graph(self._nodes, "b", [], [info])
        finally:
            self._nodes = outer
