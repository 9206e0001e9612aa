"""One reader that is fuzzed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
