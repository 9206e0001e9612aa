"""The one check of weights that a graph keeps in another file: where, how many bytes, of which type and shape.

onnx's own checker accepts offsets beyond the file's end, nobody compares lengths with shapes, and onnxruntime's
messages name neither rule nor way out. Nothing here needs the onnx package: the torch-free runner has none.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from transform.errors import VerificationError
from transform.progress import Say

# onnx.proto's number of a type -> bits of an element
BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
LONGEST_NAME = 255  # bytes: no file system has longer ones
MOST_DIMS = 64
Entries = Iterable[tuple[str, str]]


class External(NamedTuple):
    """A tensor outside its graph, as the graph says it."""

    tensor: str
    kind: int  # onnx.proto's number of its type
    shape: tuple[int, ...]
    entries: tuple[tuple[str, str], ...]  # location, offset, length


class Place(NamedTuple):
    """Its bytes: `length` of them in the file `location` beside the graph, from `offset` on."""

    location: str
    offset: int
    length: int


def place_of(graph: str, external: External, folders: bool = False) -> Place:
    """Where a tensor lies; raises VerificationError for an entry that is no place, or not of the tensor's size.

    Without an offset it is the file's beginning, without a length as many bytes as type and shape take: so the format
    says. `folders` allows files below the graph's directory, as other exporters write them.
    """

    def refuse(why: str) -> VerificationError:
        return VerificationError(f"{graph}: {external.tensor[:200]} {why}. The graph was changed: export it again.")

    given = dict(external.entries)
    if len(given) < len(external.entries):
        raise refuse("must say once where its data is, an entry is there twice")
    location = given.get("location", "")
    if not _is_name(location, folders):
        raise refuse(f"must lie in a file beside the graph, its location is {location[:80]!r}")
    if external.kind not in BITS:
        raise refuse(f"must be of a type that ONNX has, its number is {external.kind}")
    if len(external.shape) > MOST_DIMS or not all(0 <= size < 1 << 63 for size in external.shape):
        raise refuse(f"must have a shape, it is {str(list(external.shape))[:80]}")
    wanted = -(-math.prod(external.shape) * BITS[external.kind] // 8)
    offset, length = (_number(given.get(key, default)) for key, default in (("offset", "0"), ("length", str(wanted))))
    if offset is None or length is None:
        spelled = f"{given.get('offset', '')[:40]!r} and {given.get('length', '')[:40]!r}"
        raise refuse(f"must have offset and length as whole numbers of bytes, they are {spelled}")
    if length != wanted:
        raise refuse(f"must be {wanted:,} bytes inside {location} by type and shape, the graph points to {length:,}")
    return Place(location, offset, length)


def check_external(
    graph: str,
    tensors: Iterable[External],
    directory: Path,
    missing: Say | None = None,
    *,
    folders: bool = False,
) -> list[Place]:
    """The places of all tensors, each inside its file; raises VerificationError.

    `missing` is told of files that aren't there, which is an error otherwise. Links are followed: where bytes are to be
    trusted, their sums tell.
    """
    sizes: dict[str, int | None] = {}
    places = []
    for external in tensors:
        place = place_of(graph, external, folders)
        file = directory / place.location
        if place.location not in sizes:
            sizes[place.location] = file.stat().st_size if file.is_file() else None
            if sizes[place.location] is None and missing is None:
                raise VerificationError(
                    f"{graph} reads its weights from {place.location!r}, which must be a file beside it: "
                    f"{directory} has none. Keep the graphs with their weights, or let `knobcast layout` copy both."
                )
        size = sizes[place.location]
        if size is None:
            assert missing is not None
            missing(place.location)
            continue
        if place.offset + place.length > size:
            raise VerificationError(
                f"{graph}: {external.tensor} must lie inside {place.location} ({size:,} bytes), it is "
                f"{place.length:,} bytes from {place.offset:,}. The file was truncated or replaced: export the variant "
                "again."
            )
        places.append(place)
    return places


def _is_name(location: str, folders: bool) -> bool:
    parts = location.split("/")
    plain = all(part not in ("", ".", "..") and len(part.encode()) <= LONGEST_NAME for part in parts)
    inside = folders or len(parts) == 1
    return plain and inside and location.isprintable() and str(PurePosixPath(location)) == location


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
