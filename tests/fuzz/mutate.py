"""Seeded changes of valid input that keep most of its structure: JSON trees, bytes, protobuf fields, headers."""

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

Mutate = Callable[[Random, bytes], bytes]

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, float("inf"),
    float("nan"), "", "x", "0", "1", "-1", "..", "../x", "/etc/passwd", "a\0b", "\ud800", "ü😀", "x" * 300, [], {},
    [[]], [None], [0], ["x"], {"a": 1}, {"": {}},
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 4, 7, 10, 16, 63, 64, 99, 127, 128, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (b"", b"0", b"-1", b"x", b"..", b"\xff", b"\0", b"99999999999999999999", b"location", b"Shape", b"TopK", b"If")


def in_json(rng: Random, data: bytes) -> bytes:
    """One to three values of a JSON document replaced, removed, doubled, renamed, moved or buried."""
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = _change_tree(rng, tree)
    text = json.dumps(tree).encode()
    return in_bytes(rng, text) if rng.random() < 0.1 else text


def in_lines(rng: Random, data: bytes) -> bytes:
    """The same in one line of a file of JSON lines, or lines that come and go."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    way = rng.random()
    if way < 0.8:
        lines[at] = in_json(rng, lines[at]) + b"\n"
    elif way < 0.9:
        lines.insert(rng.randrange(len(lines)), lines[at])
    else:
        lines[at] = in_bytes(rng, lines[at])
    return b"".join(lines)


def in_bytes(rng: Random, data: bytes) -> bytes:
    """Some bytes flipped, removed, doubled, put in; or the end cut off."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length = rng.randrange(len(found) + 1), rng.choice((1, 1, 2, 4, 8, 64))
        way = rng.randrange(6)
        if way == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            del found[at : at + length]
        elif way == 2:
            found[at:at] = found[at : at + length]
        elif way == 3:
            found[at:at] = rng.randbytes(length)
        elif way == 4:
            found[at : at + 8] = rng.choice(NUMBERS).to_bytes(8, "little")[: rng.choice((1, 2, 4, 8))]
        elif rng.random() < 0.3:
            del found[at:]
    return bytes(found)


def in_header(rng: Random, data: bytes) -> bytes:
    """A safetensors file: its header's tree, mostly with a length that fits, or its bytes."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.15:
        return in_bytes(rng, data[: 8 + length + 64]) + data[8 + length + 64 :]
    header = in_json(rng, data[8 : 8 + length])
    claimed = len(header) if rng.random() < 0.95 else rng.choice(NUMBERS)
    return claimed.to_bytes(8, "little") + header + data[8 + length :]


def in_protobuf(rng: Random, data: bytes) -> bytes:
    """One to three fields somewhere in the tree of messages."""
    if rng.random() < 0.05:
        return in_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = _change_message(rng, data)
    return data


def _change_tree(rng: Random, tree: Any) -> Any:
    places: list[tuple[Any, Any]] = []
    _walk(tree, places)
    if not places or rng.random() < 0.03:
        return copy.deepcopy(rng.choice(ODD))
    holder, key = rng.choice(places)
    way = rng.randrange(8)
    if way < 4:
        holder[key] = copy.deepcopy(rng.choice(ODD))
    elif way == 4:
        del holder[key]
    elif way == 5:
        other, source = rng.choice(places)
        if _is_there(other, source):
            holder[key] = json.loads(json.dumps(other[source]))
    elif way == 6 and isinstance(holder, dict):
        holder[rng.choice((str(key) + "x", "", "..", "0", "\ud800", "x" * 600))] = holder.pop(key)
    elif isinstance(holder[key], int) and not isinstance(holder[key], bool):
        holder[key] = rng.choice((holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 2, float(holder[key])))
    else:
        for _ in range(rng.choice((1, 3, 40))):
            holder[key] = [holder[key]]
    return tree


def _walk(tree: Any, places: list[tuple[Any, Any]]) -> None:
    pairs = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    for key, value in pairs:
        places.append((tree, key))
        _walk(value, places)


def _is_there(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


Field = tuple[int, int, int | bytes]  # number, wire type, value


def _change_message(rng: Random, data: bytes, depth: int = 0) -> bytes:
    found = _parse(data)
    if not found:
        return rng.choice(WORDS) if depth else data
    at = rng.randrange(len(found))
    number, kind, value = found[at]
    way = rng.random()
    if isinstance(value, bytes) and way < 0.75 and depth < 12 and len(value) > 2:
        found[at] = (number, kind, _change_message(rng, value, depth + 1))
    elif way < 0.8:
        del found[at]
    elif way < 0.85:
        found.insert(rng.randrange(len(found)), found[at])
    elif way < 0.9:
        other = rng.randrange(len(found))
        found[at], found[other] = found[other], found[at]
    elif way < 0.93:
        found[at] = (rng.choice((number + 1, max(1, number - 1), 1, 5, 13, 14)), kind, value)
    elif isinstance(value, bytes):
        found[at] = (number, kind, rng.choice((*WORDS, in_bytes(rng, value), value * 2)))
    else:
        found[at] = (number, kind, rng.choice(NUMBERS))
    return b"".join(_written(*field) for field in found)


def _parse(data: bytes) -> list[Field] | None:
    """The fields of a message; None where it is none."""
    found: list[Field] = []
    at = 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            number, kind = key >> 3, key & 7
            if kind == 0:
                value, at = _varint(data, at)
                found.append((number, kind, value))
                continue
            length = 8 if kind == 1 else 4
            if kind == 2:
                length, at = _varint(data, at)
            if number == 0 or kind in (3, 4, 6, 7) or at + length > len(data):
                return None
            found.append((number, kind, data[at : at + length]))
            at += length
    except IndexError:
        return None
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _written(number: int, kind: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    if kind == 2:
        return _number(number << 3 | 2) + _number(len(value)) + value
    return _number(number << 3 | kind) + value


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
