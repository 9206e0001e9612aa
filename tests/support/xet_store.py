"""Xet storage for the stand-in Hub: hf_xet's own store in a folder, which its client takes for a server's.

What was stored there is read from its shards, for the Hub knows files by their SHA-256 and Xet by a hash of its own.
The format is that of xet-core's `mdb_shard`: a header of 48 bytes, then records of 48 bytes up to one of ones.
"""

import struct
from pathlib import Path
from typing import NamedTuple

_RECORD = 48
_VERIFIED, _EXTENDED = 1 << 31, 1 << 30  # flags of a file: a record more per segment, a record with its SHA-256


class Stored(NamedTuple):
    """Xet's hash of a file, hex; its bytes."""

    hash: str
    size: int


def address(folder: Path) -> str:
    """What stands for the storage's address."""
    return f"local://{folder}"


def stored(folder: Path) -> dict[str, Stored]:
    """SHA-256 -> file, of all that was sent."""
    found: dict[str, Stored] = {}
    for shard in folder.glob("xet/xorbs/shards/*.mdb"):
        found |= _files(shard.read_bytes())
    return found


def _files(shard: bytes) -> dict[str, Stored]:
    found, at = dict[str, Stored](), _RECORD
    while shard[at : at + 32] != b"\xff" * 32:
        name = _hex(shard[at:])
        flags, segments = struct.unpack_from("<II", shard, at + 32)
        at += _RECORD
        size = sum(struct.unpack_from("<I", shard, at + _RECORD * i + 36)[0] for i in range(segments))
        at += _RECORD * segments * (2 if flags & _VERIFIED else 1)
        if flags & _EXTENDED:
            found[_hex(shard[at:])] = Stored(name, size)
            at += _RECORD
    return found


def _hex(data: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack_from("<4Q", data))
