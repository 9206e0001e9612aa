"""Move byte ranges between files by the cheapest way the file systems offer.

Reflink (FICLONERANGE: no bytes move) -> copy_file_range -> sendfile -> read and write. What a pair of files does
not support is found out once, by trying, and the next way is taken. File systems say so in many ways (EIO, EOVERFLOW,
EACCES, or 0 bytes as at the end of a file), so only a lack of space is believed, and read and write have the last word.
"""

import errno
import fcntl
import os
import struct
import sys

from transform.errors import CheckpointError
from transform.progress import Progress

_FICLONERANGE = 0x4020940D
_CHUNK = 64 << 20  # progress granularity; also far below the kernel's 2 GiB limit per call
_BUFFER = 8 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RangeCopier:
    """Copies ranges from one open file to another; `ways` tells what was used and how many bytes each moved."""

    def __init__(self, source: int, target: int, progress: Progress) -> None:
        self.source, self.target, self.progress = source, target, progress
        self.block = os.fstatvfs(target).f_bsize
        self.ways: dict[str, int] = {}
        linux = sys.platform.startswith("linux")
        self._ladder = [
            *([("copy_file_range", self._copy_file_range)] if hasattr(os, "copy_file_range") else []),
            *([("sendfile", self._sendfile)] if linux else []),
            ("read_write", self._read_write),
        ]
        self._reflink = linux

    def copy(self, start: int, at: int, count: int) -> None:
        """Bring `count` bytes from `start` of the source to `at` of the target."""
        if self._reflink and start % self.block == at % self.block and count >= 2 * self.block:
            head = -start % self.block
            body = (count - head) // self.block * self.block
            if self._clone(start + head, at + head, body):
                self._count("reflink", body)
                self._move(start, at, head)
                self._move(start + head + body, at + head + body, count - head - body)
                return
        self._move(start, at, count)

    def _count(self, way: str, count: int) -> None:
        self.ways[way] = self.ways.get(way, 0) + count
        self.progress(count)

    def _clone(self, start: int, at: int, count: int) -> bool:
        if count == 0:
            return False
        try:
            fcntl.ioctl(self.target, _FICLONERANGE, struct.pack("qQQQ", self.source, start, count, at))
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise
            self._reflink = False
            return False
        return True

    def _move(self, start: int, at: int, count: int) -> None:
        while count:
            way, step = self._ladder[0]
            try:
                moved = step(start, at, min(count, _CHUNK))
            except OSError as error:
                if error.errno in _NO_SPACE or len(self._ladder) == 1:
                    raise
                moved = 0
            if moved == 0 and len(self._ladder) > 1:
                del self._ladder[0]
                continue
            if moved == 0:
                raise CheckpointError(f"the source ended {count:,} bytes early: it changed while it was read.")
            self._count(way, moved)
            start, at, count = start + moved, at + moved, count - moved

    def _copy_file_range(self, start: int, at: int, count: int) -> int:
        return os.copy_file_range(self.source, self.target, count, start, at)

    def _sendfile(self, start: int, at: int, count: int) -> int:
        os.lseek(self.target, at, os.SEEK_SET)
        return os.sendfile(self.target, self.source, start, count)

    def _read_write(self, start: int, at: int, count: int) -> int:
        return write_at(self.target, os.pread(self.source, min(count, _BUFFER), start), at)


def write_at(target: int, data: bytes, at: int) -> int:
    """Write all of `data` at a position (one system call may write less); returns its length."""
    done = 0
    while done < len(data):
        done += os.pwrite(target, memoryview(data)[done:], at + done)
    return done


def can_reflink(source: int, target: int) -> bool:
    """Whether the target's file system can share blocks with the source (tried on the target's first block)."""
    block = os.fstatvfs(target).f_bsize
    try:
        fcntl.ioctl(target, _FICLONERANGE, struct.pack("qQQQ", source, 0, block, 0))
    except OSError:
        return False
    os.ftruncate(target, 0)
    return True
