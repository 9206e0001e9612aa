"""A file appears whole or not at all: written beside the target, synced, renamed.

For single files; `transform/stage.py` does the same for directories. Two writers at once can't mix their bytes. What
a killed one leaves, the next one removes.
"""

import errno
import hashlib
import os
import platform
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from transform.disk import full_disk
from transform.errors import WriteError
from transform.stage import alive

Content = str | bytes | Callable[[BinaryIO], None]
SUFFIX = ".tmp"
_STAGED = re.compile(r"\.(.+)\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]+\.tmp")


def write_atomically(path: Path, content: Content, force: bool = False, sweep: bool = True) -> None:
    """Write `content` (text as UTF-8, or what a function writes) to `path`, whose folder must exist; WriteError says
    why it can't be.

    Without `force` an existing file is refused, also one that appears while this one is being written. `sweep` looks
    through the folder for what killed writers of the same file left.
    """
    if not path.parent.is_dir():
        raise WriteError(f"{path}: the folder {path.parent} does not exist. Create it or choose another file.")
    if sweep:
        sweep_staged(path.parent, path.name)
    if os.path.lexists(path) and not force:
        raise _exists(path)
    data = content.encode() if isinstance(content, str) else content
    staged = path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")
    try:
        with staged.open("wb") as file:
            data(file) if callable(data) else file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not force:
            _claim(staged, path)
        else:
            staged.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            known = (staged.stat().st_size, "of it were written") if callable(data) else (len(data), "are needed")
            raise full_disk(path, *known, "Free space or choose another file.") from error
        raise WriteError(f"{path}: {error.strerror or error}; nothing was written. Choose another file.") from error
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder whose parent exists, unless it is there; WriteError says why it can't be."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full_disk(folder, 4096, "are needed", "Free space or choose another folder.") from error
        why = "a file has its name" if isinstance(error, FileExistsError) else error.strerror
        raise WriteError(f"{folder} must be a folder, and can't be made: {why}. Choose another folder.") from error


def sweep_staged(folder: Path, name: str | None = None) -> None:
    """Remove what processes of this machine that are gone were writing in a folder, for one file or for any."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            match = _STAGED.fullmatch(path.name)
            if match and name in (None, match[1]) and match[2] == _host() and not alive(int(match[3])):
                path.unlink(missing_ok=True)


@cache
def _host() -> str:
    """A folder may be shared: another machine's processes can't be asked whether they live."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _claim(staged: Path, path: Path) -> None:
    """Give the file its name unless another has it: a hard link never replaces."""
    try:
        path.hardlink_to(staged)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise _exists(path) from None
        staged.replace(path)


def _exists(path: Path) -> WriteError:
    return WriteError(f"{path} exists; pass --force to replace it or choose another file.")
