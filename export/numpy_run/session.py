"""`NumpySession`: the part of onnxruntime's InferenceSession that knobcast uses, computed by numpy."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from export.numpy_run.arithmetic import FLOATS, wide
from export.numpy_run.contrib import OPERATORS
from export.numpy_run.standard import STANDARD
from export.numpy_run.weights import take_external
from transform.arrays import Array
from transform.errors import VerificationError
from transform.strict_json import Record

# Operators that may be given floats of two types; all others onnxruntime refuses, where numpy would widen silently.
MIXED = ("Cast", "MatMulNBits", "Pow", "QMoE", "SimplifiedLayerNormalization")
# Operators that read large weights piece by piece and widen them by themselves.
SPARING = ("Gather", "GatherBlockQuantized", "Gemm", "MatMulNBits", "MoE", "QMoE")

# Operators that only move values: what they are given of weights stays as narrow as it is.
MOVING = ("Concat", "Reshape", "Transpose")


class Value(NamedTuple):
    """An input or output as onnxruntime describes it."""

    name: str
    shape: list[int | str]
    type: str  # such as "tensor(float16)"


class NumpySession:
    """A graph ready to run. External weights stay in their files.

    `widen` computes a float16 graph in float32 on its float16 weights: what it says, without its rounding.
    """

    def __init__(self, path: Path, widen: bool = False) -> None:
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception as error:  # protobuf's own exception type depends on its implementation
            raise VerificationError(f"{path.name}: not an ONNX file ({error}). Export the variant again.") from error
        self.path = path
        if widen:
            _widen(model.graph)
        self._weights = take_external(model.graph, path.parent)
        self._inputs = [_value(info) for info in model.graph.input]
        self._outputs = [_value(info) for info in model.graph.output]
        try:
            self._evaluator = _Evaluator(model, new_ops=[*STANDARD, *OPERATORS])
            self._evaluator.widen = widen
        except (NotImplementedError, RuntimeError) as error:
            reason = str(error).splitlines()[0][:300]
            raise VerificationError(f"{path.name}: numpy can't run it: {reason}. Export the variant again.") from error

    def get_inputs(self) -> list[Value]:
        """What `run` must be fed."""
        return self._inputs

    def get_outputs(self) -> list[Value]:
        """What `run` gives."""
        return self._outputs

    def get_providers(self) -> list[str]:
        """Always numpy."""
        return ["numpy"]

    def run(self, output_names: Sequence[str] | None, feed: Mapping[str, Array]) -> list[Array]:
        """The named outputs, or all; raises VerificationError where onnxruntime would refuse the types."""
        wanted = {given.name: given for given in self._inputs}
        if wanted.keys() != feed.keys():
            raise VerificationError(f"{self.path.name} takes the inputs {sorted(wanted)}, got {sorted(feed)}.")
        for name, value in feed.items():
            if _type(value.dtype) != wanted[name].type or value.ndim != len(wanted[name].shape):
                raise VerificationError(
                    f"{self.path.name}: {name} must be {wanted[name].type} {wanted[name].shape}, "
                    f"got {_type(value.dtype)} {list(value.shape)}."
                )
        names = [output.name for output in self._outputs] if output_names is None else list(output_names)
        # Kernels don't warn: infinities travel to the outputs, where whoever compares them finds them.
        with np.errstate(all="ignore"):
            results: list[Array] = self._evaluator.run(names, {**self._weights, **feed})
        types = {output.name: output.type for output in self._outputs}
        for name, value in zip(names, results, strict=True):
            if _type(value.dtype) != types[name]:
                raise VerificationError(
                    f"{self.path.name}: {name} must be {types[name]} by the graph's own word, it is "
                    f"{_type(value.dtype)}. Export the variant again."
                )
        return results


class _Evaluator(ReferenceEvaluator):
    """The reference evaluator, except that it drops values after their last use and lets no types mix."""

    widen = False

    def run(self, output_names: Sequence[str] | None, feed_inputs: Mapping[str, Any], **_: Any) -> list[Any]:
        values: Record = {"": None, **self.rt_inits_, **feed_inputs}
        names = self.output_names if output_names is None else output_names
        for node, finished in zip(self.rt_nodes_, self._finished(), strict=True):
            given = [values[name] for name in node.input]
            floats = _floats(given)
            moved = node.op_type in MOVING and len(floats) == 1
            if self.widen and node.op_type not in SPARING and not moved:
                given = [value if value is None else wide(value) for value in given]
                floats = _floats(given)
            if len(floats) > 1 and node.op_type not in MIXED and not self.widen:
                raise VerificationError(
                    f"{node.op_type} ({', '.join(node.input)}): onnxruntime takes floats of one type, got "
                    f"{', '.join(sorted(str(dtype) for dtype in floats))}. Export the variant again."
                )
            results = node.run(*given, **({"context": values} if node.need_context() else {}))
            if self.widen and node.op_type in SPARING:  # such as rows of a table, which the next one takes as they are
                results = [wide(value) for value in results]
            values |= {name: value for name, value in zip(node.output, results, strict=False) if name}
            for name in finished:
                values.pop(name, None)
        return [wide(values[name]) if self.widen else values[name] for name in names]

    def _finished(self) -> list[list[str]]:
        """Per node, the values of this graph that nothing later reads."""
        if not hasattr(self, "_finished_"):
            last: dict[str, int] = {}
            own: set[str] = set()
            for at, node in enumerate(self.nodes_):
                last |= dict.fromkeys(_reads(node), at)
                own.update(node.output)
            self._finished_: list[list[str]] = [[] for _ in self.nodes_]
            for name in own - set(self.output_names):
                if name in last:
                    self._finished_[last[name]].append(name)
        return self._finished_


def _floats(given: Sequence[Array | None]) -> set[np.dtype[Any]]:
    return {value.dtype for value in given if value is not None and value.dtype in FLOATS}


def _widen(graph: Any) -> None:
    """Float32 wherever the graph asks for float16; its weights stay as they are."""
    halves = onnx.TensorProto.FLOAT16
    for info in (*graph.input, *graph.output):
        if info.type.tensor_type.elem_type == halves:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == halves:
                attribute.i = onnx.TensorProto.FLOAT


def _reads(node: Any) -> Iterator[str]:
    """The names a node reads, in its branches too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)
        yield from (output.name for output in attribute.g.output)


def _value(info: Any) -> Value:
    tensor = info.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return Value(info.name, shape, _type(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))


def _type(dtype: Any) -> str:
    spelled = {"float32": "float", "float64": "double"}.get(str(dtype), str(dtype))
    return f"tensor({spelled})"
