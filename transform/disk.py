"""What a full disk is told as: what was needed, what is free, what to do."""

import shutil
from pathlib import Path

from transform.errors import WriteError


def full_disk(path: Path, nbytes: int, what: str, out: str = "Free space or choose another --out.") -> WriteError:
    """The error for a file or folder without room for `nbytes`; `what` they are: "of it were written", "are needed"."""
    try:
        free = f"{shutil.disk_usage(path if path.is_dir() else path.parent).free:,}"
    except OSError:
        free = "an unknown number"
    return WriteError(f"{path}: the disk is full: {nbytes:,} bytes {what}, {free} are free; nothing was kept. {out}")


def size_of(directory: Path) -> int:
    """Bytes of all files below a directory."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
