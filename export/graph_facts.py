"""What a graph needs, read from its bytes without the onnx package: operators, types, byte ranges of its weights.

The torch-free runner has no onnx, and onnxruntime's own messages come late and name neither rule nor way out. This
reads the few fields of the ONNX protobuf that decide whether a graph can run; everything else is skipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from transform.errors import VerificationError
from transform.regular_file import read_regular

FLOAT, INT64, FLOAT16, BFLOAT16 = 1, 7, 10, 16
# Field numbers of onnx.proto.
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT = 7, 1, 5, 11
_NODE_INPUT, _NODE_KIND, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 4, 5, 7
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 11
_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL = 2, 8, 13
_MOST_BYTES = 1 << 31  # what protobuf can hold
_MULTIPLIES = ("Gemm", "MatMul", "MoE")
_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_FC3 = 6  # the input of MoE that holds the third matrix

Field = tuple[int, int | bytes]


@dataclass
class Facts:
    """One graph, its branches included."""

    operators: set[str] = field(default_factory=set)  # "Gemm", "com.microsoft::MoE"
    separate_gate: bool = False  # a MoE with three matrices per expert
    bfloat16: set[str] = field(default_factory=set)  # operators that multiply bfloat16 weights as they are
    ranges: dict[str, tuple[str, int, int]] = field(default_factory=dict)  # tensor -> file, offset, length
    sixteen_bit: bool = False  # some weights are stored in 16 bits
    inputs: list[str] = field(default_factory=list)


def read_facts(path: Path) -> Facts:
    """The facts of a graph file."""
    facts = Facts()
    try:
        graphs = [
            bytes_of(value) for number, value in fields(read_regular(path, _MOST_BYTES)) if number == _MODEL_GRAPH
        ]
        if len(graphs) != 1:
            raise ValueError(f"{len(graphs)} graphs")
        _read_graph(graphs[0], facts, set())
        values = [bytes_of(value) for number, value in fields(graphs[0]) if number == _GRAPH_INPUT]
        facts.inputs = [bytes_of(v).decode() for value in values for number, v in fields(value) if number == 1]
    except OSError as error:
        raise VerificationError(
            f"A variant to run must have {path.name}: it cannot be read ({error.strerror}). Export it again."
        ) from error
    except (ValueError, IndexError, RecursionError) as error:
        raise VerificationError(f"{path.name}: not an ONNX graph ({error}). Export the variant again.") from error
    return facts


def check_ranges(path: Path, facts: Facts) -> None:
    """Every byte range must lie in a plain file beside the graph; onnxruntime takes no other and says less."""
    sizes: dict[str, int] = {}
    for name, (location, offset, length) in facts.ranges.items():
        file = path.parent / location
        if location not in sizes:
            if not location or Path(location).name != location or not file.is_file():
                raise VerificationError(
                    f"{path.name} reads its weights from {location!r}, which must be a file beside it: {path.parent} "
                    "has none. Keep the graphs with their weights, or let `knobcast layout` copy both."
                )
            sizes[location] = file.stat().st_size
        if offset < 0 or length < 0 or offset + length > sizes[location]:
            raise VerificationError(
                f"{path.name}: {name} must lie inside {location} ({sizes[location]:,} bytes), it is {length:,} bytes "
                f"from {offset:,}. The file was truncated or replaced: export the variant again."
            )


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
    parts = [(number, bytes_of(value)) for number, value in fields(data) if number in (_GRAPH_NODE, _GRAPH_INITIALIZER)]
    narrow = set(outer)
    for number, value in parts:
        if number == _GRAPH_INITIALIZER:
            _read_tensor(value, facts, narrow)
    for number, value in parts:
        if number == _GRAPH_NODE:
            _read_node(value, facts, narrow)


def _read_tensor(data: bytes, facts: Facts, narrow: set[str]) -> None:
    name, kind = "", 0
    external: dict[str, str] = {}
    for number, value in fields(data):
        if number == _TENSOR_NAME:
            name = bytes_of(value).decode()
        elif number == _TENSOR_TYPE:
            kind = int(value)
        elif number == _TENSOR_EXTERNAL:
            entry = {n: bytes_of(v).decode() for n, v in fields(bytes_of(value))}
            external[entry.get(1, "")] = entry.get(2, "")
    if external:
        facts.ranges[name] = (
            external.get("location", ""), int(external.get("offset", 0)), int(external.get("length", 0))
        )  # fmt: skip
    if kind == BFLOAT16:
        narrow.add(name)
    facts.sixteen_bit |= kind in (FLOAT16, BFLOAT16)


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
    if kind in _CONTROL_FLOW:
        for attribute in attributes:
            for inner, graph in fields(attribute):
                if inner in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                    _read_graph(bytes_of(graph), facts, narrow)
    facts.operators.add(f"{domain}::{kind}" if domain else kind)
    if kind in _MULTIPLIES and not narrow.isdisjoint(inputs):
        facts.bfloat16.add(kind)
    if kind == "MoE" and len(inputs) > _FC3 and inputs[_FC3]:
        facts.separate_gate = True
