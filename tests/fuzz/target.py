"""One reader that is fuzzed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.mutate import Mutate


@dataclass(frozen=True)
class Target:
    """`run` reads the changed input in a folder of its own; what it raises beyond refusals is a fault."""

    name: str
    valid: tuple[bytes, ...]
    mutate: Mutate
    run: Callable[[bytes], object]


def put(path: Path, data: bytes) -> Path:
    """Write a file anew: not through a link to what others have."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def of_rows(
    name: str, files: Mapping[str, bytes], mutate: Callable[[str], Mutate], run: Callable[[str, bytes], object]
) -> Target:
    """A target over several files, by a word for each: an input is the word, a line end, the file.

    `mutate`: how the file of a word is changed.
    """

    def changed(rng: Random, data: bytes) -> bytes:
        row, _, file = data.partition(b"\n")
        return row + b"\n" + mutate(row.decode())(rng, file)

    def read(data: bytes) -> object:
        row, _, file = data.partition(b"\n")
        return run(row.decode(), file)

    return Target(name, tuple(row.encode() + b"\n" + data for row, data in files.items()), changed, read)
