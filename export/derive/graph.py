"""An ONNX graph to be operated on: who makes a value, who reads it, what is dead. Weights are never opened.

Nodes are plain objects over the protobuf ones, in topological order; `finish` writes them back. Branches of an `If`
read values of the graph around them: those count as the node's own inputs.
"""

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from transform.arrays import Array
from transform.errors import CheckpointError

CONTRIB = "com.microsoft"
SMALL = 64  # elements; larger constants are no shapes and no k
# operator -> the least inputs and outputs it has; others may have none of the first, and have one of the second
_LEAST = {
    "Shape": (1, 1), "Size": (1, 1), "MoE": (3, 1), "QMoE": (3, 1), "TopK": (2, 1),
    "SkipSimplifiedLayerNormalization": (2, 1), "GatherBlockQuantized": (3, 1),
}  # fmt: skip


class Node:
    """One operator; `captured` are the outer values that its branches read."""

    __slots__ = ("captured", "inputs", "op", "outputs", "proto")

    def __init__(self, proto: Any) -> None:
        self.proto, self.op = proto, proto.op_type
        self.inputs, self.outputs = list(proto.input), list(proto.output)
        self.captured = [name for branch in branches(proto) for name in _captured(branch)]

    @property
    def reads(self) -> list[str]:
        """All values it needs."""
        return self.inputs + self.captured if self.captured else self.inputs

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        for attribute in self.proto.attribute:
            if attribute.name == name:
                try:
                    return helper.get_attribute_value(attribute)
                except ValueError as error:
                    raise damaged(f"{name} of {self.op} has a type that ONNX doesn't have") from error
        return default

    def whole(self, name: str, default: int) -> int:
        """The value of an attribute that is a whole number."""
        value = self.attribute(name, default)
        if not isinstance(value, int):
            raise damaged(f"{name} of {self.op} must be a whole number, it is {str(value)[:40]!r}")
        return value

    def set_int(self, name: str, value: int) -> None:
        """Give an attribute another whole number."""
        for attribute in self.proto.attribute:
            if attribute.name == name:
                attribute.i = value
                return
        self.proto.attribute.append(helper.make_attribute(name, value))

    def rename(self, names: Mapping[str, str]) -> None:
        """Read other values, here and in the branches."""
        self.inputs = [names.get(name, name) for name in self.inputs]
        if any(name in names for name in self.captured):
            for branch in branches(self.proto):
                _rename(branch, names)
            self.captured = [names.get(name, name) for name in self.captured]


class Network:
    """The main graph of a model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        graph = model.graph
        self.nodes = [Node(proto) for proto in graph.node]
        self.initializers = {proto.name: proto for proto in graph.initializer}
        self.inputs = [value for value in graph.input if value.name not in self.initializers]
        self.outputs = list(graph.output)
        self.stale: set[str] = set()  # values whose recorded shape may no longer hold
        self._constants: dict[str, Array | None] = {}
        self._names = {name for node in self.nodes for name in node.outputs} | self.initializers.keys()
        self._names.update(value.name for value in graph.input)
        self._check()
        self.sort()

    def _check(self) -> None:
        """Names are text, and nodes have what the operators that are taken apart here need."""
        named = [*self.inputs, *self.outputs, *self.initializers.values()]
        names = [name for node in self.nodes for name in (node.op, *node.inputs, *node.outputs)]
        if not all(isinstance(name, str) for name in (*names, *(value.name for value in named))):
            raise damaged("names must be text in UTF-8, some are not")  # protobuf then gives bytes
        for node in self.nodes:
            inputs, outputs = _LEAST.get(node.op, (0, 1))
            if len(node.inputs) < inputs or len(node.outputs) < outputs:
                raise damaged(
                    f"{node.op} must have {inputs} inputs and {outputs} outputs or more, it has {len(node.inputs)} and "
                    f"{len(node.outputs)}"
                )
        made = [name for node in self.nodes for name in node.outputs if name]
        if len(set(made)) < len(made):
            raise damaged("every value must be made by one operator, some are made by several")

    def index(self) -> None:
        """Take stock after the nodes have changed."""
        self.maker = {name: node for node in self.nodes for name in node.outputs if name}
        self.readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.reads:
                found = self.readers.setdefault(name, [])
                if not found or found[-1] is not node:
                    found.append(node)
        self.readers.pop("", None)

    def constant(self, name: str) -> Array | None:
        """A small constant inside the file, from an initializer or a `Constant` node."""
        if name not in self._constants:
            self._constants[name] = self._read(name)
        return self._constants[name]

    def dims(self, name: str) -> tuple[int, ...] | None:
        """The shape of a constant or a weight."""
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        value = self.constant(name)
        return None if value is None else value.shape

    def _read(self, name: str) -> Array | None:
        proto = self.initializers.get(name)
        if proto is None:
            node = self.maker.get(name)
            return _constant_node(node) if node is not None and node.op == "Constant" else None
        if proto.data_location == TensorProto.EXTERNAL or np.prod(proto.dims, dtype=np.int64) > SMALL:
            return None
        return _array(proto)

    def add_constant(self, value: Array) -> str:
        """A constant for this graph; equal ones are stored once."""
        base = f"derived_{value.dtype}_{'x'.join(map(str, value.shape))}_{'_'.join(map(str, value.ravel()))}"
        known = self.constant(base)
        if known is not None and known.dtype == value.dtype and np.array_equal(known, value):
            return base
        name = self.fresh(base)
        self.initializers[name] = numpy_helper.from_array(value, name)
        self._constants[name] = value
        return name

    def fresh(self, base: str) -> str:
        """A name that no value has."""
        name, count = base, 1
        while name in self._names:
            name, count = f"{base}_{count}", count + 1
        self._names.add(name)
        return name

    def new_node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **given: Any) -> Node:
        """A node that isn't in the graph yet."""
        return Node(helper.make_node(op, inputs, outputs, domain=domain, **given))

    def copy_node(self, node: Node, inputs: Sequence[str]) -> Node:
        """A copy with other inputs and with outputs of its own."""
        proto = NodeProto()
        proto.CopyFrom(node.proto)
        copied = Node(proto)
        copied.inputs = list(inputs)
        copied.outputs = [self.fresh(f"{name}_derived") if name else "" for name in node.outputs]
        return copied

    def sort(self) -> None:
        """Put every node behind those it reads from, else in the order they have; refuses circles."""
        done: set[Node] = set()
        opened: set[Node] = set()  # whose makers were put before them, or are about to be
        ordered: list[Node] = []
        maker = {name: node for node in self.nodes for name in node.outputs if name}
        for start in self.nodes:
            waiting = [start]
            while waiting:
                node = waiting[-1]
                before = [m for name in node.reads if (m := maker.get(name)) is not None and m not in done]
                if before and node not in done:
                    if node in opened:
                        raise damaged(f"no value may be made from itself, {node.outputs[0]!r} of {node.op} is")
                    opened.add(node)
                    waiting.extend(before)
                    continue
                waiting.pop()
                if node not in done:
                    done.add(node)
                    ordered.append(node)
        self.nodes = ordered
        self.index()

    def cone(self, value: str, stops: Container[str]) -> list[Node]:
        """The nodes that compute `value`, in order, going back no further than the values `stops`; no constants."""
        found: set[Node] = set()
        waiting = [value]
        first = True
        while waiting:
            name = waiting.pop()
            node = self.maker.get(name)
            if node is None or node.op == "Constant" or node in found or (name in stops and not first):
                continue
            first = False
            found.add(node)
            waiting.extend(node.reads)
        return [node for node in self.nodes if node in found] if len(found) * 4 > len(self.nodes) else self._sort(found)

    def _sort(self, found: Iterable[Node]) -> list[Node]:
        if getattr(self, "_ordered", None) is not self.nodes:
            self._ordered = self.nodes
            self._place = {node: at for at, node in enumerate(self.nodes)}
        return sorted(found, key=self._place.__getitem__)

    def prune(self) -> None:
        """Remove what no output needs: nodes, then initializers."""
        needed = {value.name for value in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.outputs):
                kept.append(node)
                needed.update(node.reads)
        self.nodes = kept[::-1]
        self.initializers = {name: proto for name, proto in self.initializers.items() if name in needed}
        self.index()

    def finish(self) -> Any:
        """The model with all changes written into it."""
        graph = self.model.graph
        _name_all([node.proto for node in self.nodes])
        for node in self.nodes:
            if list(node.proto.input) != node.inputs:
                node.proto.input[:] = node.inputs
            if list(node.proto.output) != node.outputs:
                node.proto.output[:] = node.outputs
        made = {name for node in self.nodes for name in node.outputs} - self.stale
        described = [info for info in graph.value_info if info.name in made]
        for field, values in (
            (graph.value_info, described),
            (graph.node, [node.proto for node in self.nodes]),
            (graph.initializer, list(self.initializers.values())),
            (graph.input, self.inputs),
            (graph.output, self.outputs),
        ):
            _replace(field, values)
        return self.model


def branches(proto: Any) -> Iterator[Any]:
    """The graphs inside a node."""
    for attribute in proto.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _name_all(nodes: Iterable[Any]) -> None:
    """Give every node that has no name, or another one's, a name of its own, across all branches.

    Fusions of onnxruntime 1.18 to 1.21 name their nodes after those they replace, and fail where those have no name.
    """
    every = list(_with_inner(nodes))
    taken = {proto.name for proto in every}
    seen = {""}
    numbers: Counter[str] = Counter()
    for proto in every:
        base = proto.name or proto.op_type
        while proto.name in seen:
            numbers[base] += 1
            name = f"{base}_{numbers[base]}"
            proto.name = proto.name if name in taken else name
        seen.add(proto.name)


def _with_inner(nodes: Iterable[Any]) -> Iterator[Any]:
    for proto in nodes:
        yield proto
        for branch in branches(proto):
            yield from _with_inner(branch.node)


def _replace(field: Any, values: list[Any]) -> None:
    copies = [type(value)() for value in values]
    for copied, value in zip(copies, values, strict=True):
        copied.CopyFrom(value)
    del field[:]
    field.extend(copies)


def _captured(graph: Any) -> list[str]:
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    found: list[str] = []
    for node in graph.node:
        reads = [*node.input, *(name for branch in branches(node) for name in _captured(branch))]
        found.extend(name for name in reads if name and name not in own)
        own.update(node.output)
    return found + [value.name for value in graph.output if value.name not in own]


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name in names:
                node.input[at] = names[name]
        for branch in branches(node):
            _rename(branch, names)
    for value in graph.output:
        value.name = names.get(value.name, value.name)


def _constant_node(node: Node) -> Array | None:
    for kind, dtype in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32)):
        found = node.attribute(kind)
        if found is not None:
            return np.array(found, dtype)
    value = node.attribute("value")
    if not isinstance(value, TensorProto) or np.prod(value.dims, dtype=np.int64) > SMALL:
        return None
    return _array(value)


def _array(proto: Any) -> Array:
    try:
        return numpy_helper.to_array(proto)
    except (TypeError, ValueError, KeyError) as error:
        raise damaged(f"the constant {proto.name!r} must hold what its type and shape say ({error})") from error


def damaged(why: str) -> CheckpointError:
    """A graph that no exporter writes."""
    return CheckpointError(f"{why}. The graph is damaged: export it again.")
