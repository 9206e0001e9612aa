"""Open and read files that other people made: regular ones only, never more than a limit. No torch.

A pipe would keep the reader waiting, a device has no end. Which message a user gets is the caller's to say.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

LFS_POINTER = b"version https://git-lfs"  # a clone without git-lfs has small texts that begin so for its large files


class IrregularError(ValueError):
    """What a file isn't, or holds too much of; the message is a clause without a file name."""


def open_regular(path: Path) -> BinaryIO:
    """The file opened for reading; raises OSError as open does, and IrregularError for folders, pipes and devices."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise IrregularError("it must be a regular file, it is a folder, pipe or device")
    return os.fdopen(handle, "rb")


def read_regular(path: Path, limit: int) -> bytes:
    """All bytes of a regular file of at most `limit` bytes; raises OSError or IrregularError."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size <= limit:
            data = file.read(limit + 1)
            if len(data) <= limit:
                return data
    raise IrregularError(f"at most {limit:,} bytes are read, it is larger")
