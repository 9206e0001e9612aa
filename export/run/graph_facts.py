"""What a graph needs, read from its bytes without the onnx package: operators, types, byte ranges of its weights.

The torch-free runner has no onnx, and onnxruntime's own messages come late and name neither rule nor way out. This
reads the few fields of the ONNX protobuf that decide whether a graph can run; everything else is skipped.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from export.run.external import External, Place, check_external, place_of
from transform.errors import VerificationError
from transform.regular_file import read_regular

FLOAT, INT64, FLOAT16, BFLOAT16 = 1, 7, 10, 16
# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_METADATA, _MODEL_FUNCTION = 7, 14, 25
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN = 1, 7, 10
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_SPARSE = 1, 5, 11, 15
_NODE_INPUT, _NODE_KIND, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 4, 5, 7
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 11
_ATTRIBUTE_TENSORS = (5, 10)  # one, many
_SPARSE_TENSORS = (1, 2)  # values, indices
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 2, 8, 13, 14
_LOCATION = b"location"
_MOST_BYTES = 1 << 31  # what protobuf can hold
_MOST_NODES = 200_000  # 48 blocks of 128 experts, each by itself, have 40 thousand; onnxruntime opens a million in 30 s
_MOST_TENSORS = 100_000
_MULTIPLIES = ("Gemm", "MatMul", "MoE")
_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
MOE = "com.microsoft::MoE"
_FC3 = 6  # the input of MoE that holds the third matrix

Field = tuple[int, int | bytes]


@dataclass
class Facts:
    """One graph, its branches included."""

    operators: set[str] = field(default_factory=set)  # "Gemm", "com.microsoft::MoE"
    separate_gate: bool = False  # a MoE with three matrices per expert
    bfloat16: set[str] = field(default_factory=set)  # operators that multiply bfloat16 weights as they are
    external: list[External] = field(default_factory=list)  # tensors whose data is in other files
    sixteen_bit: bool = False  # some weights are stored in 16 bits
    inputs: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)  # operator -> nodes of it
    nodes: int = 0  # as they stand
    tensors: int = 0

    @property
    def device_only(self) -> bool:
        """Whether its fused experts are for a device: float16, or three matrices each."""
        return self.separate_gate or (self.sixteen_bit and MOE in self.operators)

    def ranges(self, graph: str) -> dict[str, Place]:
        """Tensor -> its bytes; raises VerificationError for one that is nowhere."""
        return {external.tensor: place_of(graph, external) for external in self.external}


def read_facts(path: Path) -> Facts:
    """The facts of a graph file."""
    facts = Facts()
    if path.exists() and not path.is_file():
        raise VerificationError(f"{path.name} must be a regular file, it is none. Export the variant again.")
    try:
        parts = [(number, value) for number, value in fields(read_regular(path, _MOST_BYTES))]
        graphs = [bytes_of(value) for number, value in parts if number == _MODEL_GRAPH]
        if len(graphs) != 1:
            raise ValueError(f"{len(graphs)} graphs")
        _read_graph(graphs[0], facts, set())
        functions = dict(_read_function(bytes_of(value), facts) for number, value in parts if number == _MODEL_FUNCTION)
        _check_size(facts.calls, functions)
        values = [bytes_of(value) for number, value in fields(graphs[0]) if number == _GRAPH_INPUT]
        facts.inputs = [bytes_of(v).decode() for value in values for number, v in fields(value) if number == 1]
    except OSError as error:
        raise VerificationError(
            f"A variant to run must have {path.name}: it cannot be read ({error.strerror}). Export it again."
        ) from error
    except (ValueError, IndexError, RecursionError) as error:
        raise VerificationError(f"{path.name}: not an ONNX graph ({error}). Export the variant again.") from error
    return facts


def read_metadata(path: Path) -> dict[str, str]:
    """What a graph file says of itself: its `metadata_props`. Raises VerificationError for what is no graph, or says
    something twice."""
    found: dict[str, str] = {}
    try:
        for number, value in fields(read_regular(path, _MOST_BYTES)):
            if number == _MODEL_METADATA:
                entry = {part: bytes_of(text).decode() for part, text in fields(bytes_of(value))}
                if entry.get(1, "") in found:
                    raise ValueError(f"metadata {entry.get(1, '')[:80]!r} is there twice")
                found[entry.get(1, "")] = entry.get(2, "")
    except (OSError, ValueError, IndexError) as error:
        raise VerificationError(f"{path.name}: not an ONNX graph ({error}). Export the variant again.") from error
    return found


def check_ranges(path: Path, facts: Facts) -> None:
    """Every byte range must lie in a plain file beside the graph, and have the size of type and shape."""
    check_external(path.name, facts.external, path.parent)


def fields(data: bytes) -> Iterator[Field]:
    """(number, value) of every field of a protobuf message; fixed-width values are skipped."""
    at, end = 0, len(data)
    while at < end:
        key, at = (data[at], at + 1) if data[at] < 128 else _varint(data, at)  # the call takes most of the time
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
        elif kind == 2:
            length, at = (data[at], at + 1) if data[at] < 128 else _varint(data, at)
            if at + length > end:
                raise ValueError("it ends early")
            yield number, data[at : at + length]
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")


def bytes_of(value: int | bytes) -> bytes:
    """A message or a string; a number in its place is damage."""
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _read_graph(data: bytes, facts: Facts, outer: set[str]) -> None:
    """Add one graph; `outer` are the bfloat16 weights that an enclosing graph holds."""
    wanted = (_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE)
    parts = [(number, bytes_of(value)) for number, value in fields(data) if number in wanted]
    narrow = set(outer)
    for number, value in parts:
        if number == _GRAPH_INITIALIZER:
            _read_tensor(value, facts, narrow)
        elif number == _GRAPH_SPARSE:
            for inner, tensor in fields(value):
                if inner in _SPARSE_TENSORS:
                    _read_tensor(bytes_of(tensor), facts, narrow)
    for number, value in parts:
        if number == _GRAPH_NODE:
            _read_node(value, facts, narrow)


def _read_function(data: bytes, facts: Facts) -> tuple[str, Counter[str]]:
    """(what nodes call it, how often it calls what); its weights and operators are added to the facts."""
    names = {_FUNCTION_NAME: "", _FUNCTION_DOMAIN: ""}
    own = replace(facts, calls=Counter())
    for number, value in fields(data):
        if number in names:
            names[number] = bytes_of(value).decode()
        elif number == _FUNCTION_NODE:
            _read_node(bytes_of(value), own, set())
    facts.separate_gate, facts.sixteen_bit = own.separate_gate, own.sixteen_bit
    facts.nodes, facts.tensors = own.nodes, own.tensors
    name, domain = names.values()
    return (f"{domain}::{name}" if domain else name), own.calls


def _check_size(calls: Counter[str], functions: Mapping[str, Counter[str]]) -> None:
    """Refuse more nodes than a runtime opens in seconds, functions put in their place: one may call another twice, and
    that a third."""
    sizes: dict[str, int] = {}

    def size(of: Counter[str], inside: frozenset[str]) -> int:
        for name in (of.keys() & functions.keys()) - sizes.keys():
            if name in inside:
                raise ValueError(f"the function {name[:80]!r} calls itself")
            sizes[name] = size(functions[name], inside | {name})
        return sum(count * sizes.get(name, 1) for name, count in of.items())

    if (nodes := size(calls, frozenset())) > _MOST_NODES:
        raise ValueError(f"it must have at most {_MOST_NODES:,} nodes, it has {min(nodes, 10**18):,}")


def _read_tensor(data: bytes, facts: Facts, narrow: set[str]) -> None:
    name, kind, elsewhere = "", 0, False
    shape: list[int] = []
    entries: list[tuple[str, str]] = []
    for number, value in fields(data):
        if number == _TENSOR_NAME:
            name = bytes_of(value).decode()
        elif number == _TENSOR_TYPE:
            kind = int(value)
        elif number == _TENSOR_DIMS:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif number == _TENSOR_LOCATION:
            elsewhere = value == 1
        elif number == _TENSOR_EXTERNAL:
            entry = {n: bytes_of(v).decode() for n, v in fields(bytes_of(value))}
            entries.append((entry.get(1, ""), entry.get(2, "")))
    facts.tensors += 1
    if facts.tensors > _MOST_TENSORS:
        raise ValueError(f"it must have at most {_MOST_TENSORS:,} tensors, it has more")
    if elsewhere or entries:
        facts.external.append(External(name, kind, tuple(shape), tuple(entries)))
    if kind == BFLOAT16:
        narrow.add(name)
    facts.sixteen_bit |= kind in (FLOAT16, BFLOAT16)


def _varints(data: bytes) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def _read_node(data: bytes, facts: Facts, narrow: set[str]) -> None:
    inputs: list[str] = []
    attributes: list[bytes] = []
    kind = domain = ""
    for number, value in fields(data):
        if number == _NODE_INPUT:
            inputs.append(bytes_of(value).decode())
        elif number == _NODE_KIND:
            kind = bytes_of(value).decode()
        elif number == _NODE_DOMAIN:
            domain = bytes_of(value).decode()
        elif number == _NODE_ATTRIBUTE:
            attributes.append(bytes_of(value))
    for attribute in attributes:
        if kind in _CONTROL_FLOW:
            for inner, graph in fields(attribute):
                if inner in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                    _read_graph(bytes_of(graph), facts, narrow)
        elif _LOCATION in attribute:  # a constant whose data is elsewhere
            for inner, tensor in fields(attribute):
                if inner in _ATTRIBUTE_TENSORS:
                    _read_tensor(bytes_of(tensor), facts, set())
    operator = f"{domain}::{kind}" if domain else kind
    facts.nodes += 1
    if facts.nodes > _MOST_NODES:
        raise ValueError(f"it must have at most {_MOST_NODES:,} nodes, it has more")
    facts.calls[operator] += 1
    facts.operators.add(operator)
    if kind in _MULTIPLIES and not narrow.isdisjoint(inputs):
        facts.bfloat16.add(kind)
    if kind == "MoE" and len(inputs) > _FC3 and inputs[_FC3]:
        facts.separate_gate = True
