"""A small builder for ONNX graphs whose weights stay where they are, inside the variant's `.safetensors` files.

An operator call returns the names of its results, so a graph reads like the mathematics it stands for. Nothing here
knows a model, and nothing reads a weight: an initializer is a name, a shape, a file, an offset and a length.
A graph computes in one type, float32 or float16; weights stored otherwise are cast at the place of use.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph.shapes import fused_shapes
from transform.arrays import Array
from transform.checkpoint import Pack, Tensor
from transform.errors import CheckpointError
from transform.forms import ACTIVATIONS, ROUNDED, Form
from transform.knobs import DTYPES

# Of the ordinary operators, as early as runs as fast; IR 8 is what onnxruntime 1.14 reads besides.
OPSET = 18  # Split takes truth values from here on: onnxruntime 1.14
EARLIER = 17  # LayerNormalization is in it: onnxruntime 1.12
IR_VERSION = 8
CONTRIB = "com.microsoft"  # onnxruntime's own operators, for the fused forms
FLOAT, FLOAT16, INT64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
INT32 = TensorProto.INT32
DOUBLE, UINT8 = TensorProto.DOUBLE, TensorProto.UINT8
TYPES = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "U8": TensorProto.UINT8,
}

Shape = Sequence[int | str]


class Graph:
    """One graph under construction; values are strings, as ONNX has them."""

    def __init__(
        self,
        name: str,
        form: Form,
        fixed: bool = False,
        opset: int = OPSET,
        activations: str = ACTIVATIONS[0],
    ) -> None:
        self.name, self.opset = name, opset
        # 4: each row that meets a quantised matrix is rounded to 8 bits; 1: it stays float32
        self.accuracy = 4 if activations == ROUNDED else 1
        self.fixed = fixed  # all sizes are known: those that onnx can't infer are written down
        self.compute = TYPES[DTYPES[form.compute]]
        self.fused = form.fused  # onnxruntime's own operators may be used
        self.form = form
        self.notes: Mapping[str, str] = {}  # metadata
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._values = self._operators = 0

    def input(self, name: str, dtype: int, shape: Shape) -> str:
        """Declare an input."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, value: str, dtype: int, shape: Shape) -> None:
        """Give a value its public name, unless `named` gave it, and declare it an output."""
        if value != name:
            self._append("Identity", [value], [name])
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Append an operator with one result."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, results: int, *inputs: str, **attributes: object) -> list[str]:
        """Append an operator with several results."""
        names = [self._fresh() for _ in range(results)]
        self._append(kind, inputs, names, **attributes)
        return names

    def named(self, name: str, kind: str, *inputs: str, **attributes: object) -> str:
        """Append an operator whose one result has a public name: nothing stands between it and a bound buffer."""
        self._append(kind, inputs, [name], **attributes)
        return name

    def result(self, name: str | None, kind: str, *inputs: str, **attributes: object) -> str:
        """`named` where there is a name, else `op`."""
        return self.op(kind, *inputs, **attributes) if name is None else self.named(name, kind, *inputs, **attributes)

    def choose(self, condition: str, then: Callable[[], str], otherwise: Callable[[], str]) -> str:
        """`If`: only the chosen branch runs and takes memory. Branches yield one tensor of the graph's type."""
        return self.op("If", condition, then_branch=self._branch(then), else_branch=self._branch(otherwise))

    def choose_and(
        self,
        named: Sequence[str],
        condition: str,
        then: Callable[[], Sequence[str]],
        otherwise: Callable[[], Sequence[str]],
    ) -> str:
        """`choose` of several tensors: the first is returned, the others have public names, as of `named`."""
        then_branch, else_branch = self._several(then), self._several(otherwise)
        result = self._fresh()
        self._append("If", [condition], [result, *named], then_branch=then_branch, else_branch=else_branch)
        return result

    def each(self, count: str, build: Callable[[str], str], dtype: int) -> str:
        """`Loop`: build(i) for i from 0 to the scalar `count`, results of one shape and of `dtype` stacked in front."""
        step, going = self._fresh(), self._fresh()
        given = [helper.make_tensor_value_info(step, INT64, []), helper.make_tensor_value_info(going, BOOL, [])]

        def body() -> list[object]:
            handed = helper.make_tensor_value_info(self.op("Identity", going), BOOL, [])
            return [handed, _unshaped(build(step), dtype)]

        return self.op("Loop", count, self._true(), body=self._nested(body, given))

    def fold(self, count: str, build: Callable[[str, str], str], first: str) -> str:
        """`Loop`: value = build(i, value) for i from 0 to the scalar `count`, `first` before; of the graph's type."""
        step, going, before = self._fresh(), self._fresh(), self._fresh()
        given = [
            helper.make_tensor_value_info(step, INT64, []),
            helper.make_tensor_value_info(going, BOOL, []),
            _unshaped(before, self.compute),
        ]

        def body() -> list[object]:
            handed = helper.make_tensor_value_info(self.op("Identity", going), BOOL, [])
            return [handed, _unshaped(build(step, before), self.compute)]

        return self.op("Loop", count, self._true(), first, body=self._nested(body, given))

    def _true(self) -> str:
        # onnx's reference evaluator takes an omitted condition for a false one
        return self.constant(np.array(True))

    def zero(self) -> object:
        """The attribute of `ConstantOfShape` for zeros of the graph's own type."""
        return numpy_helper.from_array(np.zeros(1, np.float16 if self.compute == FLOAT16 else np.float32))

    def constant(self, array: Array) -> str:
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

    def scaled(self, value: str, by: float) -> str:
        """A value of the graph's type times a number, which float16 would round for every token alike."""
        if by == 1.0:
            return value
        if self.compute == FLOAT:
            return self.op("Mul", value, self.float32(by))
        return self.cast(self.op("Mul", self.wide(value), self.float32(by)))

    def float32(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def float(self, value: float) -> str:
        """A scalar of the graph's own type."""
        return self.constant(np.array(value, np.float16 if self.compute == FLOAT16 else np.float32))

    def cast(self, value: str) -> str:
        """A float32 value in the graph's own type."""
        return value if self.compute == FLOAT else self.op("Cast", value, to=self.compute)

    def wide(self, value: str) -> str:
        """A value of the graph's type in float32."""
        return value if self.compute == FLOAT else self.op("Cast", value, to=FLOAT)

    def stored(self, tensor: Tensor) -> str:
        """A weight as it is stored, in place."""
        name = tensor.name
        if name in self._initializers and tuple(self._initializers[name].dims) != tensor.shape:
            name = f"{name}.{'x'.join(map(str, tensor.shape))}"  # the same bytes in another shape: a tied head's codes
        if name not in self._initializers:
            proto = TensorProto()
            proto.name = name
            proto.data_type = TYPES[tensor.stored]
            proto.dims.extend(tensor.shape)
            proto.data_location = TensorProto.EXTERNAL
            for key, value in (("location", tensor.file.name), ("offset", tensor.start), ("length", tensor.nbytes)):
                entry = proto.external_data.add()
                entry.key, entry.value = key, str(value)
            self._initializers[name] = proto
        return name

    def weight(self, tensor: Tensor) -> str:
        """A weight to compute with: in place where it is stored in the graph's type, else through a cast."""
        name = self.stored(tensor)
        return name if TYPES[tensor.stored] == self.compute else self.op("Cast", name, to=self.compute)

    def rows(self, table: Tensor, indices: str) -> str:
        """Rows of a stored table [rows, width] in the graph's type."""
        if table.pack is not None:
            return self._packed_rows(table, table.pack, indices)
        found = self.op("Gather", self.stored(table), indices, axis=0)
        return found if TYPES[table.stored] == self.compute else self.op("Cast", found, to=self.compute)

    def stack(self, tensors: Sequence[Tensor], flat: bool = False) -> str:
        """Equal matrices that lie back to back in one file, as one [count, rows, columns] in place; raises
        CheckpointError. `flat`: [count * rows, columns].
        """
        first = tensors[0]
        for at, tensor in enumerate(tensors):
            place = (first.file, first.start + at * first.nbytes, first.shape, first.stored)
            if (tensor.file, tensor.start, tensor.shape, tensor.stored) != place:
                raise CheckpointError(
                    f"{tensor.name} must follow {tensors[at - 1].name} in the weight file, so that one operator can "
                    "read them together. Export with --form cuda, which writes them so."
                )
        rows, columns = first.shape
        shape = (len(tensors) * rows, columns) if flat else (len(tensors), rows, columns)
        return self.stored(first._replace(name=f"{first.name}.stack", shape=shape, nbytes=len(tensors) * first.nbytes))

    def linear(self, x: str, weight: Tensor, bias: Tensor | None = None, turned: bool = False) -> str:
        """x W^T (+ b) for x [n, in] and W [out, in], or `turned` [in, out]: as it is stored, so that no weight is ever
        transposed."""
        if weight.pack is not None:
            return self._packed_linear(x, weight, weight.pack, bias)
        operands = [x, self.weight(weight)] + ([self.weight(bias)] if bias else [])
        return self.op("Gemm", *operands, **({} if turned else {"transB": 1}))

    def model(self) -> Any:
        """The finished model."""
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, initializer=list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", self.opset)]
        if any(node.domain == CONTRIB for node in self._nodes):
            opsets.append(helper.make_opsetid(CONTRIB, 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="knobcast")
        if self.fixed:
            model.graph.value_info.extend(fused_shapes(model, self.compute))
        for key, value in self.notes.items():
            model.metadata_props.add(key=key, value=value)
        return model

    def serialised(self) -> bytes:
        """The file's content; equal graphs give equal bytes."""
        return bytes(self.model().SerializeToString(deterministic=True))

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_bytes(self.serialised())

    def _packed_rows(self, table: Tensor, pack: Pack, indices: str) -> str:
        sizes = {"bits": pack.bits, "block_size": pack.block, "gather_axis": 0, "quantize_axis": 1}
        rows, columns = table.shape
        codes = self.stored(pack.codes._replace(shape=(rows, pack.codes.nbytes // rows)))  # it takes rows, not blocks
        found = self.op("GatherBlockQuantized", codes, indices, self.weight(pack.scales), domain=CONTRIB, **sizes)
        if columns % pack.block:  # what fills the last block comes out as well
            found = self.op("Slice", found, self.ints(0), self.ints(columns), self.ints(-1))
        return found

    def _packed_linear(self, x: str, weight: Tensor, pack: Pack, bias: Tensor | None) -> str:
        # float16 scales are widened once, at load
        operands = [x, self.stored(pack.codes), self.weight(pack.scales)]
        operands += ["", "", self.weight(bias)] if bias else []
        rows, columns = weight.shape
        sizes = {"N": rows, "K": columns, "bits": pack.bits, "block_size": pack.block, "accuracy_level": self.accuracy}
        return self.op("MatMulNBits", *operands, domain=CONTRIB, **sizes)

    def _append(self, kind: str, inputs: Sequence[str], results: Sequence[str], **attributes: object) -> None:
        # numbered across branches: without a name, fusions of onnxruntime 1.18 to 1.21 call two of their nodes the same
        self._operators += 1
        self._nodes.append(helper.make_node(kind, inputs, results, name=f"n{self._operators}", **attributes))

    def _fresh(self) -> str:
        self._values += 1
        return f"v{self._values}"

    def _branch(self, build: Callable[[], str]) -> object:
        return self._several(lambda: [build()])

    def _several(self, build: Callable[[], Sequence[str]]) -> object:
        return self._nested(lambda: [_unshaped(name, self.compute) for name in build()])

    def _nested(self, build: Callable[[], Sequence[object]], given: Sequence[object] = ()) -> object:
        """The subgraph whose nodes `build` appends; it returns the outputs' infos, `given` are those of the inputs."""
        outer, self._nodes = self._nodes, []
        try:
            results = build()
            return helper.make_graph(self._nodes, "b", given, results)
        finally:
            self._nodes = outer


def _unshaped(name: str, dtype: int) -> object:
    info = onnx.ValueInfoProto(name=name)
    info.type.tensor_type.elem_type = dtype
    return info
