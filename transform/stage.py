"""A directory appears whole or not at all: stage beside the target, fsync, rename.

A killed run leaves only a hidden `.NAME.stage-PID-…` directory, which the next run sweeps. Two runs at once: the
first rename wins, the second one finds the target occupied and loses cleanly. Where two names can't be swapped in one
step, the old directory waits under a hidden name of its own, and the next run puts it back if it is the only one.
"""

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transform.disk import full_disk, size_of
from transform.errors import WriteError
from transform.ownership import MANIFEST, foreign_files, is_ours, read_manifest, traces

OUT = "--out"  # the option that names a target
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of shares and FUSE: they order directories by themselves


def kind_of(directory: Path) -> str:
    """By the manifest: a "layout" is what `knobcast layout` wrote, all else is taken for a "variant"."""
    return "layout" if "layout" in read_manifest(directory) else "variant"


def check_target(target: Path, force: bool, kind: str = "variant", called: str = OUT) -> None:
    """Refuse a target that exists, or that --force must not replace by one of `kind`; touches nothing. `called`: what
    users name it by."""
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise WriteError(f"{target} exists and is not a directory; choose another {called}.")
    if _is_mounted(target):
        raise WriteError(
            f"a target takes its name in one step, and {target} is a mount point, whose name is taken. "
            f"Give a new name below it, such as {called} {target / kind}."
        )
    if not any(target.iterdir()):
        return
    if not force:
        raise WriteError(f"{target} exists; pass --force to replace it or choose another {called}.")
    _check_replaceable(target, kind, called)


def _check_replaceable(target: Path, kind: str, called: str) -> None:
    away = f"Choose another {called}, or remove the directory yourself."
    if not (target / MANIFEST).is_file():
        raise WriteError(
            f"--force replaces only a directory that holds a {MANIFEST}, as variants do; {target} has none. {away}"
        )
    if kind_of(target) != kind:
        raise WriteError(f"--force replaces a {kind} by another one; {target} is a {kind_of(target)}. {away}")
    if not is_ours(read_manifest(target)):
        raise WriteError(f"--force replaces only what knobcast wrote; {target / MANIFEST} is of another kind. {away}")
    foreign = foreign_files(target)
    if foreign is None:
        raise WriteError(
            f"--force replaces a directory whose record names every file; {target} has no readable SHA256SUMS, and "
            f"its manifest lists none. {away}"
        )
    if foreign:
        more = f" and {len(foreign) - 5:,} more" if len(foreign) > 5 else ""
        raise WriteError(
            f"--force replaces only the {kind}'s own files; {target} also holds {', '.join(foreign[:5])}{more}. "
            f"Move them elsewhere, or choose another {called}."
        )


def _is_mounted(path: Path) -> bool:
    """Whether a directory is a mount point, also one of the file system it lies in."""
    if os.path.ismount(path):
        return True
    try:
        table = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return False
    name = os.fsencode(path.resolve()).replace(b"\\", b"\\134")
    for plain, escaped in ((b" ", b"\\040"), (b"\t", b"\\011"), (b"\n", b"\\012")):
        name = name.replace(plain, escaped)
    return any(line.split(b" ")[4:5] == [name] for line in table.splitlines())


@contextmanager
def staged(target: Path, force: bool, kind: str = "variant", called: str = OUT) -> Iterator[Path]:
    """A fresh directory beside `target` that becomes `target` when the block ends without an error.

    `called`: what users name the target by.
    """
    parent = target.parent
    if os.path.lexists(parent) and not parent.is_dir():
        raise WriteError(f"{parent} is not a directory; choose another {called}.")
    _put_back(target)
    check_target(target, force, kind, called)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        stage = parent / f".{target.name}.stage-{os.getpid()}-{secrets.token_hex(4)}"
        stage.mkdir()
    except OSError as error:
        below = target.is_dir() and os.access(target, os.W_OK)
        out = f"Give a new name below {target}" if below else f"Choose another {called}"
        raise WriteError(f"{parent}: cannot be written to ({error.strerror}). {out}.") from error
    try:
        yield stage
        sync_tree(stage)
        check_target(target, force, kind, called)
        _publish(stage, target, force, called)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full_disk(
                parent, size_of(stage), "of it were written", f"Free space or choose another {called}."
            ) from error
        raise WriteError(f"{target}: {error.strerror or error}; nothing was written.") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    sync_names(parent)


def _publish(stage: Path, target: Path, force: bool, called: str) -> None:
    try:
        stage.rename(target)  # also over an empty directory
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not force:
            raise WriteError(f"{target} appeared meanwhile; nothing was written. Choose another {called}.") from error
        _keep_traces(_exchange(stage, target), target)


def _exchange(stage: Path, target: Path) -> Path:
    """Swap the two names in one step where the system can, so that `target` never is absent -> the old directory."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(_AT_FDCWD, os.fsencode(stage), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE)
        if done == 0:
            return stage
    aside = target.with_name(f".{target.name}.replaced-{os.getpid()}-{secrets.token_hex(4)}")
    target.rename(aside)
    try:
        stage.rename(target)
    except OSError:
        aside.rename(target)
        raise
    sync(target.parent)  # before the old one may go
    aside.rename(stage)
    return stage


def _keep_traces(old: Path, target: Path) -> None:
    """What systems left in the old directory stays where they expect it."""
    with suppress(OSError):
        for name in traces(old):
            if not os.path.lexists(target / name):
                (old / name).rename(target / name)


def _left(target: Path, words: str) -> Iterator[Path]:
    """Hidden directories of runs for the same target whose process is gone."""
    pattern = re.compile(re.escape(f".{target.name}.") + words)
    with suppress(OSError):
        for path in list(target.parent.iterdir()):
            match = pattern.fullmatch(path.name)
            if match and not alive(int(match[1])):
                yield path


def _put_back(target: Path) -> None:
    """An old directory whose run was killed between two renames gets its name back; if the new one has it, it goes."""
    for path in _left(target, r"(?:replaced|stage)-(\d+)-[0-9a-f]+(?:-old)?"):
        if ".replaced-" not in path.name and not path.name.endswith("-old"):
            continue
        try:
            path.rename(target)  # also over an empty directory
        except OSError:
            if (target / MANIFEST).is_file():
                shutil.rmtree(path, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove stages of the same target whose process is gone."""
    for path in _left(target, r"stage-(\d+)-[0-9a-f]+"):
        shutil.rmtree(path, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether a process exists."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def sync(path: Path) -> None:
    """fsync a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC or not path.is_dir():
            raise
    finally:
        os.close(handle)


def sync_names(directory: Path) -> None:
    """fsync a directory in which something was renamed and stands; WriteError where that fails."""
    try:
        sync(directory)
    except OSError as error:
        raise WriteError(
            f"{directory}: what was written has its name there, but a power cut may undo that, as the folder can't be "
            f"synced ({error.strerror}). Check the disk, then run the command again."
        ) from error


def sync_tree(directory: Path) -> None:
    """fsync every file below a directory, then the directories, the outermost last."""
    for path in sorted(directory.rglob("*"), key=lambda path: (path.is_dir(), -len(path.parts), path)):
        sync(path)
    sync(directory)
