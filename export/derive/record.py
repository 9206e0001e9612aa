"""A derived graph joins the files beside it; in a variant, its record too. Killed anywhere, a rerun completes it.

Graph and overlay are staged under hidden names, which no check looks at. In a variant the manifest first announces
them with their sums (`pending`), then they take their names, then SHA256SUMS, then the manifest lists the graph under
`derived` and announces nothing. Every state between two of these steps verifies; the next run settles it.
"""

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from export.files.integrity import pending_of, read_sums, sha256_file
from transform.disk import full_disk
from transform.errors import VerificationError, WriteError
from transform.ownership import MANIFEST, PENDING, SUMS, read_manifest
from transform.stage import alive, sync
from transform.strict_json import Record, read_json
from transform.write import write_json

_STAGE = re.compile(r"\..+\.stage-([0-9]+)(\.ours|\.theirs)?")
Manifest = Record


def check_record(directory: Path, verify: bool) -> None:
    """In a verified variant, sums and manifest must fit each other, and only verified graphs may be added."""
    if not is_recorded(directory):
        return
    if not verify:
        raise WriteError(
            f"{directory} is a verified variant, and --no-verify would add a graph that isn't. Leave --no-verify out."
        )
    _own_sums(directory, read_json(directory / MANIFEST))


def is_recorded(directory: Path) -> bool:
    """Whether a directory is a verified variant."""
    if not (directory / MANIFEST).is_file():
        return False
    return _digest(read_json(directory / MANIFEST)) is not None


def is_unfinished(path: Path) -> bool:
    """Whether a run that was killed had announced this file."""
    return path.name in pending_of(read_manifest(path.parent))[1]


def publish(directory: Path, entry: Mapping[str, object], files: Mapping[Path, Path]) -> None:
    """Give the files ({target: staged}, the graph last) their names and extend the record. One process at a time."""
    with refusing(directory, sum(staged.stat().st_size for staged in files.values())):
        handle = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            for staged in files.values():
                sync(staged)
            if (directory / MANIFEST).is_file():
                _extend(directory, entry, files)
            else:
                _rename(directory, files)
        finally:
            os.close(handle)


def _extend(directory: Path, entry: Mapping[str, object], files: Mapping[Path, Path]) -> None:
    manifest = _settled(directory)
    added = {target.name: sha256_file(staged) for target, staged in files.items()}
    pending: Manifest = {"entry": dict(entry), "added": added}
    text = None
    if _digest(manifest) is not None:
        text = _sums_text(_own_sums(directory, manifest) | added)
        pending["sha256sums"] = hashlib.sha256(text.encode()).hexdigest()
    _write(directory, manifest | {PENDING: pending})
    _rename(directory, files)
    _finish(directory, manifest, pending, text)


def _settled(directory: Path) -> Manifest:
    """The manifest, once what a killed run left undone is finished; or undone, where its graph never arrived."""
    manifest = read_json(directory / MANIFEST)
    if PENDING not in manifest:
        return manifest
    pending = manifest.pop(PENDING)
    announced, added = pending_of({PENDING: pending})
    arrived = [name for name, digest in added.items() if _has(directory / name, digest)]
    listed = None
    if _digest(manifest) is not None:
        digest, listed = read_sums(directory)
        if digest not in (_digest(manifest), announced):
            raise _changed()
    if len(arrived) == len(added):
        text = None if listed is None else _sums_text(listed | added)
        if text is None or hashlib.sha256(text.encode()).hexdigest() == announced:
            return _finish(directory, manifest, pending, text)
        raise _changed()
    for name in arrived:  # over an older one of that name, or new
        if listed is not None and name in listed:
            listed[name] = added[name]
        else:
            (directory / name).unlink()
    text = None if listed is None else _sums_text(listed)
    if text is None or hashlib.sha256(text.encode()).hexdigest() == _digest(manifest):
        _write(directory, manifest)
        return manifest
    pending = {"added": added, "sha256sums": hashlib.sha256(text.encode()).hexdigest()}
    _write(directory, manifest | {PENDING: pending})
    return _finish(directory, manifest, pending, text)


def _finish(directory: Path, manifest: Manifest, pending: Manifest, text: str | None) -> Manifest:
    """Sums, then the manifest that goes with them."""
    if text is not None:
        with appearing(directory / SUMS) as stage:
            stage.write_text(text, "utf-8")
        sync(directory)
        manifest = manifest | {"files": {**manifest["files"], "sha256sums": pending["sha256sums"]}}
    entry, derived = pending.get("entry"), manifest.get("derived")
    if isinstance(entry, dict):
        manifest = manifest | {"derived": {**(derived if isinstance(derived, dict) else {}), entry["graph"]: entry}}
    _write(directory, manifest)
    return manifest


def _rename(directory: Path, files: Mapping[Path, Path]) -> None:
    for target, staged in files.items():
        staged.replace(target)
    sync(directory)


def _write(directory: Path, manifest: Manifest) -> None:
    with appearing(directory / MANIFEST) as stage:
        write_json(stage, manifest)
    sync(directory)


def _has(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest


def _digest(manifest: Manifest) -> str | None:
    """The digest of the sums that a manifest holds; None where nothing was verified."""
    files = manifest.get("files")
    recorded = files.get("sha256sums") if isinstance(files, dict) else None
    return None if recorded in (None, "not computed") else str(recorded)


def _own_sums(directory: Path, manifest: Manifest) -> dict[str, str]:
    digest, listed = read_sums(directory)
    if digest not in (_digest(manifest), pending_of(manifest)[0]):
        raise _changed()
    return listed


def _changed() -> VerificationError:
    return VerificationError(
        f"{SUMS} must have the digest in {MANIFEST}, it was changed: nothing is added to it. Export the variant again."
    )


def _sums_text(listed: Mapping[str, str]) -> str:
    return "".join(f"{listed[name]}  {name}\n" for name in sorted(listed))


@contextmanager
def refusing(path: Path, nbytes: int) -> Iterator[None]:
    """What the system refuses, as an error that says what to do; `nbytes` would have been written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full_disk(path, nbytes, "are needed", "Free space.") from error
        raise WriteError(
            f"{path}: {error.strerror or error}; nothing was written. Make the graph's directory writable, or copy it."
        ) from error


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` for what will replace it, free again at the end. Those of killed runs are removed."""
    with suppress(OSError):
        for left in list(path.parent.iterdir()):
            match = _STAGE.fullmatch(left.name)
            if match and left.is_file() and not alive(int(match[1])):
                left.unlink(missing_ok=True)
    stage = path.with_name(f".{path.name}.stage-{os.getpid()}")
    try:
        yield stage
    finally:
        with suppress(OSError):  # a file system that became read-only has said so already
            stage.unlink(missing_ok=True)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A hidden file beside `path` that takes its place when the block ends without an error."""
    with staging(path) as stage:
        yield stage
        sync(stage)
        stage.replace(path)
