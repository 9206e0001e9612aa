"""What was written, read once: compared with the source where it was copied, and summed.

SHA-256 goes on in a second thread while this one reads and compares: both sides would otherwise be read twice.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from transform.checkpoint import Checkpoint, Tensor
from transform.errors import VerificationError

_CHUNK = 8 << 20


class Stretch(NamedTuple):
    """Bytes of a written file, and the tensor of the source that they must equal; None: header, or not copied."""

    start: int
    nbytes: int
    origin: Tensor | None


def is_copied(planned: Checkpoint, written: Checkpoint, name: str) -> bool:
    """Whether a tensor was neither cast nor quantised."""
    origin = planned.tensors[name]
    return origin.dtype == origin.stored and written.tensors[name].pack is None


def check_copied(planned: Checkpoint, written: Checkpoint) -> tuple[int, dict[str, str]]:
    """(tensors that hold the bytes of their origin, {weight file of `written`: its SHA-256}).

    Raises VerificationError for a tensor that was copied and holds other bytes.
    """
    names = [name for name in written.tensors if is_copied(planned, written, name)]
    copied: dict[Path, list[str]] = {tensor.file: [] for tensor in written.tensors.values()}
    for name in names:
        copied[written.tensors[name].file].append(name)
    with ThreadPoolExecutor(1) as hashing:
        sums = {}
        for file, held in copied.items():
            own = sorted((written.tensors[name].start, name) for name in held)
            stretches = _stretches([(at, planned.tensors[name]) for at, name in own], file.stat().st_size)
            sums[file.name] = _read(file, stretches, hashing)
    return len(names), sums


def _stretches(copied: Sequence[tuple[int, Tensor]], size: int) -> Iterator[Stretch]:
    """All of a file of `size` bytes, in order."""
    at = 0
    for start, origin in copied:
        if start > at:
            yield Stretch(at, start - at, None)
        yield Stretch(start, origin.nbytes, origin)
        at = start + origin.nbytes
    if size > at:
        yield Stretch(at, size - at, None)


def _read(path: Path, stretches: Iterator[Stretch], hashing: ThreadPoolExecutor) -> str:
    """Compare a file's stretches; returns the SHA-256 of all its bytes."""
    digest = hashlib.sha256()
    buffers = cycle((bytearray(_CHUNK), bytearray(_CHUNK)))  # one is summed while the other is filled
    whole = bytearray(_CHUNK)
    summed: Future[None] | None = None
    with ExitStack() as files:
        file = files.enter_context(path.open("rb", buffering=0))
        sources: dict[Path, FileIO] = {}
        for start, nbytes, origin in stretches:
            for at in range(0, nbytes, _CHUNK):
                size = min(_CHUNK, nbytes - at)
                ours, theirs = (next(buffers), whole) if size == _CHUNK else (bytearray(size), bytearray(size))
                _fill(ours, file, start + at)
                if summed is not None:
                    summed.result()
                summed = hashing.submit(digest.update, ours)
                if origin is None:
                    continue
                if origin.file not in sources:
                    sources[origin.file] = files.enter_context(origin.file.open("rb", buffering=0))
                _fill(theirs, sources[origin.file], origin.start + at)
                if ours != theirs:
                    raise VerificationError(
                        f"{origin.name} must hold the source's bytes; the written ones differ. Export it again."
                    )
        if summed is not None:
            summed.result()
    return digest.hexdigest()


def _fill(buffer: bytearray, file: FileIO, start: int) -> None:
    """Read into all of `buffer`."""
    left = memoryview(buffer)
    file.seek(start)
    while left:
        count = file.readinto(left)
        if not count:
            raise VerificationError(f"{file.name} must not change while it is compared; it ended. Export it again.")
        left = left[count:]
