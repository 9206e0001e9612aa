"""A graph of one operator, made without the onnx package: logits [b, s, V] -> those of the last token [b, V].

On a device it saves copying the logits of a whole prompt, 100 MB for 500 tokens of a large vocabulary; and it is small
enough to find out whether a provider loads at all before a real graph is opened on it.
"""

from export.run.graph_facts import INT64

INPUT, OUTPUT = "logits", "last"


def last_row_model(kind: int) -> bytes:
    """The model for one element type, as onnx numbers them."""
    shape = [_message(1, _text(2, name)) for name in ("batch", "sequence", "vocabulary")]
    given = _message(11, _text(1, INPUT), _message(2, _message(1, _number(1, kind), _message(2, *shape))))
    shape = [shape[0], shape[2]]
    found = _message(12, _text(1, OUTPUT), _message(2, _message(1, _number(1, kind), _message(2, *shape))))
    last = (-1).to_bytes(8, "little", signed=True)
    place = _message(5, _number(2, INT64), _text(8, "place"), _field(9, last))  # a scalar: no dims
    axis = _message(5, _text(1, "axis"), _number(3, 1), _number(20, 2))
    node = _message(1, _text(1, INPUT), _text(1, "place"), _text(2, OUTPUT), _text(4, "Gather"), axis)
    graph = _message(7, node, _text(2, "last_row"), place, given, found)
    return _number(1, 9) + graph + _message(8, _text(1, ""), _number(2, 18))


def _message(number: int, *parts: bytes) -> bytes:
    return _field(number, b"".join(parts))


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
