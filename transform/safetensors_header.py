"""Read the header of a safetensors file, trusting nothing in it.

Format: 8 bytes little-endian header length, a JSON object name -> {dtype, shape, data_offsets}, then the data.
Every rule of the format is checked here against the file's real size, because what follows copies byte ranges.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from transform.errors import CheckpointError
from transform.regular_file import LFS_POINTER, IrregularError, open_regular
from transform.strict_json import Record

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
# What the format has besides: low-precision numbers, and their scales.
QUANTISED = {
    "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64",
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_TENSORS = 200_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\Z")


class Entry(NamedTuple):
    """One tensor of a file; `start` and `nbytes` are absolute positions in it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_header(path: Path) -> tuple[Entry, ...]:
    """The tensors of one file in the order of their bytes; raises CheckpointError for anything irregular.

    An unchanged file is parsed once: planning and writing both ask.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(
            f"{path.name}: cannot be read ({error.strerror}). Check that the file exists and is readable."
        ) from error
    return _parse(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _parse(path: Path, *_unchanged: int) -> tuple[Entry, ...]:

    def refuse(why: str, way_out: str = "The file is damaged or hostile: download it again") -> CheckpointError:
        return CheckpointError(f"{path.name}: {why}. {way_out}.")

    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if prefix == LFS_POINTER[:8]:
                raise refuse("weights must be there, this is a git-lfs pointer to them", "Run git lfs pull")
            if len(prefix) < 8 or not 2 <= length <= MAX_HEADER_BYTES or 8 + length > size:
                raise refuse(
                    f"the header must fit the file and {MAX_HEADER_BYTES:,} bytes, it claims {length:,} "
                    f"of {size:,} bytes"
                )
            text = file.read(length)
    except IrregularError as error:
        raise refuse(str(error), "Give the file itself") from error
    except OSError as error:
        raise CheckpointError(
            f"{path.name}: cannot be read ({error.strerror}). Check that the file exists and is readable."
        ) from error

    objects = 0

    def unique(pairs: list[tuple[str, object]]) -> Record:
        nonlocal objects
        objects += 1
        if objects > MAX_TENSORS + 2:  # its own, the metadata's; before a million of them are parsed
            raise refuse(f"the header must name 1 to {MAX_TENSORS:,} tensors, it names more")
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise refuse(f"names must be unique, {twice[:80]!r} is there twice")
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise refuse(f"the header must be one JSON object ({error})") from error
    if not isinstance(header, dict):
        raise refuse("the header must be one JSON object")
    header.pop("__metadata__", None)
    if not 0 < len(header) <= MAX_TENSORS:
        raise refuse(f"the header must name 1 to {MAX_TENSORS:,} tensors, it names {len(header):,}")

    entries = [_entry(name, value, 8 + length, refuse) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.nbytes))
    end = 8 + length
    for entry in entries:
        if entry.start != end:
            raise refuse(
                f"tensors must follow each other without gap or overlap, {entry.name!r} starts at byte "
                f"{entry.start:,} instead of {end:,}"
            )
        end = entry.start + entry.nbytes
    if end != size:
        raise refuse(f"the file must hold {end:,} bytes by its header, it holds {size:,}")
    return tuple(entries)


def _entry(name: str, value: object, base: int, refuse: Callable[..., CheckpointError]) -> Entry:
    if not _NAME.match(name) or len(name) > 500:
        raise refuse(f"tensor names must be made of letters, digits, '.', '_' and '-', got {name[:80]!r}")
    if not isinstance(value, dict):
        raise refuse(f"{name!r} must be described by an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if isinstance(dtype, str) and dtype in QUANTISED:
        raise refuse(
            f"weights must be floating point numbers, {name!r} is {dtype}: this checkpoint is quantised",
            "Use the one it was made of",
        )
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise refuse(f"{name!r} has dtype {str(dtype)[:40]!r}, known are {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise refuse(f"{name!r} has an impossible shape {str(shape)[:80]}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise refuse(f"{name!r} has impossible offsets {str(offsets)[:80]}")
    begin, stop = offsets
    if stop - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise refuse(
            f"{name!r} must take {math.prod(shape) * ITEM_BYTES[dtype]:,} bytes by its dtype and shape, its offsets "
            f"span {stop - begin:,}"
        )
    return Entry(name, dtype, tuple(shape), base + begin, stop - begin)
