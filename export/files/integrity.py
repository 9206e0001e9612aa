"""Files against what was recorded: SHA-256 sums, and the byte ranges that graphs point to. No torch."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from export.run.external import check_external
from export.run.graph_facts import read_facts
from transform.errors import VerificationError
from transform.ownership import MANIFEST, OUTSIDE, PENDING, SUMS, is_ignored, visible_files
from transform.progress import Progress
from transform.regular_file import IrregularError, open_regular, read_regular
from transform.stage import kind_of
from transform.strict_json import MAX_JSON_BYTES, Record, read_json

_CHUNK = 4 << 20
_TRIES = 5  # of a directory that `derive` adds to while it is read
NONE: Mapping[str, str] = MappingProxyType({})
_PLAIN = r"[A-Za-z0-9_][A-Za-z0-9_.\-]*"


def sha256_file(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
                if progress:
                    progress(len(piece))
    except IrregularError as error:
        raise VerificationError(f"{path.name}: {error}. Export the variant again.") from error
    return digest.hexdigest()


def write_sums(directory: Path, progress: Progress | None = None, known: Mapping[str, str] = NONE) -> str:
    """Write SHA256SUMS over every file but OUTSIDE (`sha256sum -c` reads it); returns its digest.

    `known`: sums of files that were read whole since they were written.
    """
    names = [name for name in visible_files(directory) if name not in OUTSIDE]
    lines = [f"{known.get(name) or sha256_file(directory / name, progress)}  {name}\n" for name in names]
    (directory / SUMS).write_text("".join(lines), "utf-8")
    return sha256_file(directory / SUMS)


def check_sums(directory: Path, progress: Progress | None = None, known: Mapping[str, str] = NONE) -> int:
    """Compare every file with SHA256SUMS and that with the manifest; returns the number of files.

    Links are followed: the bytes count. Files that `derive` is adding meanwhile, or was when it was killed, are those
    the manifest announces. `known`: sums of files that were just read whole.
    """
    for _ in range(_TRIES):
        before = read_json(directory / MANIFEST)
        try:
            return _check_sums(directory, before, progress, known)
        except VerificationError:
            if read_json(directory / MANIFEST) == before:
                raise
    raise VerificationError(f"{directory} was changed {_TRIES} times while it was read. Verify it again.")


def _check_sums(directory: Path, manifest: Record, progress: Progress | None, known: Mapping[str, str]) -> int:
    files = manifest.get("files")
    recorded = files.get("sha256sums") if isinstance(files, dict) else None
    if recorded == "not computed":
        raise VerificationError(f"{directory} was exported with --no-verify: nothing was recorded. Export it verified.")
    digest, listed = read_sums(directory)
    announced, added = pending_of(manifest)
    if digest not in (recorded, announced):
        raise VerificationError(f"{SUMS} must have the digest in {MANIFEST}, it was changed. Export the variant again.")
    present = {name for name in visible_files(directory) if name not in OUTSIDE}
    if missing := sorted(listed.keys() - present):
        raise VerificationError(
            f"the variant must hold the {len(listed)} files of {SUMS}; missing: {', '.join(missing[:5])}. "
            "Export the variant again."
        )
    if extra := sorted(present - listed.keys() - added.keys()):
        raise VerificationError(
            f"the variant must hold the {len(listed)} files of {SUMS} and no others; extra: {', '.join(extra[:5])}. "
            "Remove them."
        )
    for name in sorted(present):
        path = directory / name
        if not path.is_file():
            raise VerificationError(f"{name} must be a file, or a link to one. Export the variant again.")
        try:
            found = known.get(name) or sha256_file(path, progress)
        except OSError as error:
            raise VerificationError(f"{name}: cannot be read ({error.strerror}). Export the variant again.") from error
        if found not in (listed.get(name), added.get(name)):
            raise VerificationError(f"{name} must have the digest in {SUMS}, it was changed. Export the variant again.")
    return len(listed)


def is_plain(path: str) -> bool:
    """Whether a relative path has plain names alone, none of them hidden, so that it can't lead out of a folder."""
    return re.fullmatch(rf"{_PLAIN}(?:/{_PLAIN})*", path) is not None


def read_sums(directory: Path) -> tuple[str, dict[str, str]]:
    """(digest of SHA256SUMS, file name -> its sum); raises VerificationError for what can't be sums."""
    try:
        data = read_regular(directory / SUMS, MAX_JSON_BYTES)
        text = data.decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VerificationError(f"{SUMS}: cannot be read ({reason}). Export the variant again.") from error
    listed = {}
    for line in text.splitlines():
        match = re.fullmatch(rf"([0-9a-f]{{64}})  ({_PLAIN}(?:/{_PLAIN})*)", line)
        if match is None:
            raise VerificationError(
                f"{SUMS}: must hold lines of sums and plain file names, got {line[:80]!r}. Export the variant again."
            )
        if match[2] in listed:
            raise VerificationError(f"{SUMS}: must name each file once, {match[2]} is there twice. Export it again.")
        listed[match[2]] = match[1]
    return hashlib.sha256(data).hexdigest(), listed


def pending_of(manifest: Record) -> tuple[str | None, dict[str, str]]:
    """(digest that SHA256SUMS will have, file name -> sum) of what `derive` is adding; none: (None, {})."""
    pending = manifest.get(PENDING)
    if not isinstance(pending, dict) or not isinstance(pending.get("added"), dict):
        return None, {}
    digest = pending.get("sha256sums")
    added = {str(name): str(value) for name, value in pending["added"].items()}
    return (digest if isinstance(digest, str) else None), added


@contextmanager
def unreplaced(directory: Path) -> Iterator[None]:
    """A check of a directory that another run replaced meanwhile has checked neither, and says so."""
    before = _identity(directory)
    try:
        yield
    except Exception as error:
        if _identity(directory) != before:
            raise _replaced(directory) from error
        raise
    if _identity(directory) != before:
        raise _replaced(directory)


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _replaced(directory: Path) -> VerificationError:
    return VerificationError(f"{directory} was replaced by another run while it was verified. Verify it again.")


def check_before_torch(directory: Path) -> None:
    """What needs no model: a variant's manifest is there. A cheap answer before slow imports."""
    if not (directory / MANIFEST).is_file():
        raise VerificationError(f"{directory}: no {MANIFEST}, so it is no variant. Give the directory of an export.")
    if kind_of(directory) == "layout":
        raise VerificationError(
            f"{directory} is a layout, which holds nothing to be verified by. Give the directory that it was made of."
        )


def external_tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph and of the branches inside it that keeps its data in another file."""
    import onnx

    sparse = [tensor for held in graph.sparse_initializer for tensor in (held.values, held.indices)]
    yield from (t for t in (*graph.initializer, *sparse) if t.data_location == onnx.TensorProto.EXTERNAL)
    for node in graph.node:
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    yield tensor
            for branch in (attribute.g, *attribute.graphs):
                yield from external_tensors(branch)


def check_graph_bounds(directory: Path) -> dict[str, int]:
    """Check that every range a graph points to lies inside a file of the directory and has the tensor's size.

    Returns {graph file: number of ranges}.
    """
    return {
        path.name: len(check_external(path.name, read_facts(path).external, directory))
        for path in sorted(directory.glob("*.onnx"))
        if not is_ignored(path.name)
    }
