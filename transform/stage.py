"""A directory appears whole or not at all: stage beside the target, fsync, rename.

A killed run leaves only a hidden `.NAME.stage-PID-…` directory, which the next run sweeps. Two runs at once: the
first rename wins, the second one finds the target occupied and loses cleanly.
"""

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transform.errors import WriteError

MANIFEST = "manifest.json"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def kind_of(directory: Path) -> str:
    """By the manifest: a "layout" is what `knobcast layout` wrote, all else is taken for a "variant"."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return "variant"
    return "layout" if isinstance(manifest, dict) and "layout" in manifest else "variant"


def check_target(target: Path, force: bool, kind: str = "variant") -> None:
    """Refuse a target that exists, or that --force must not replace by one of `kind`; touches nothing."""
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise WriteError(f"{target} exists and is not a directory; choose another --out.")
    if not any(target.iterdir()):
        return
    if not force:
        raise WriteError(f"{target} exists; pass --force to replace it or choose another --out.")
    if not (target / MANIFEST).is_file():
        raise WriteError(
            f"--force replaces only a directory that holds a {MANIFEST}, as variants do; {target} has none. "
            "Choose another --out, or remove the directory yourself."
        )
    if kind_of(target) != kind:
        raise WriteError(
            f"--force replaces a {kind} by another one; {target} is a {kind_of(target)}. Choose another --out, or "
            "remove the directory yourself."
        )


@contextmanager
def staged(target: Path, force: bool, kind: str = "variant") -> Iterator[Path]:
    """A fresh directory beside `target` that becomes `target` when the block ends without an error."""
    check_target(target, force, kind)
    parent = target.parent
    if os.path.lexists(parent) and not parent.is_dir():
        raise WriteError(f"{parent} is not a directory; choose another --out.")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        stage = parent / f".{target.name}.stage-{os.getpid()}-{secrets.token_hex(4)}"
        stage.mkdir()
    except OSError as error:
        raise WriteError(f"{parent}: cannot be written to ({error.strerror}). Choose another --out.") from error
    try:
        yield stage
        sync_tree(stage)
        check_target(target, force, kind)
        _publish(stage, target, force)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise WriteError(f"{parent}: the disk is full; nothing was written. Free space or choose --out.") from error
        raise WriteError(f"{target}: {error.strerror or error}; nothing was written.") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    _sync(parent)


def _publish(stage: Path, target: Path, force: bool) -> None:
    try:
        stage.rename(target)  # also over an empty directory
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not force:
            raise WriteError(f"{target} appeared meanwhile; nothing was written. Choose another --out.") from error
        _exchange(stage, target)


def _exchange(stage: Path, target: Path) -> None:
    """Swap the two names in one step where the system can, so that `target` never is absent."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(_AT_FDCWD, os.fsencode(stage), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE)
        if done == 0:
            return
    aside = stage.with_name(f"{stage.name}-old")
    target.rename(aside)
    stage.rename(target)
    shutil.rmtree(aside)


def _sweep(target: Path) -> None:
    """Remove stages of the same target whose process is gone."""
    pattern = re.compile(re.escape(f".{target.name}.stage-") + r"(\d+)-[0-9a-f]+(-old)?\Z")
    for path in target.parent.iterdir():
        match = pattern.match(path.name)
        if match and not alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """fsync every file below a directory, then the directory."""
    for path in sorted(directory.rglob("*"), reverse=True):
        _sync(path)
    _sync(directory)
