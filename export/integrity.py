"""Files against what was recorded: SHA-256 sums, and the byte ranges that graphs point to. No torch."""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from export.external import check_external
from export.graph_facts import read_facts
from transform.checkpoint import read_json
from transform.errors import VerificationError
from transform.stage import MANIFEST, kind_of

SUMS = "SHA256SUMS"
_CHUNK = 4 << 20


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            if progress:
                progress(len(piece))
    return digest.hexdigest()


def write_sums(directory: Path, progress: Callable[[int], None] | None = None) -> str:
    """Write SHA256SUMS over every file but itself and the manifest (`sha256sum -c` reads it); returns its digest."""
    names = sorted(p.name for p in directory.iterdir() if p.is_file() and p.name not in (SUMS, MANIFEST))
    lines = [f"{sha256_file(directory / name, progress)}  {name}\n" for name in names]
    (directory / SUMS).write_text("".join(lines), "utf-8")
    return sha256_file(directory / SUMS)


def check_sums(directory: Path, progress: Callable[[int], None] | None = None) -> int:
    """Compare every file with SHA256SUMS and that with the manifest; returns the number of files."""
    files = read_json(directory / MANIFEST).get("files")
    recorded = files.get("sha256sums") if isinstance(files, dict) else None
    if recorded == "not computed":
        raise VerificationError(f"{directory} was exported with --no-verify: nothing was recorded. Export it verified.")
    try:
        text = (directory / SUMS).read_text("utf-8")
    except OSError as error:
        raise VerificationError(f"{SUMS}: cannot be read ({error.strerror}). Export the variant again.") from error
    if recorded != hashlib.sha256(text.encode()).hexdigest():
        raise VerificationError(f"{SUMS} must have the digest in {MANIFEST}, it was changed. Export the variant again.")
    listed = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([0-9a-f]{64})  ([A-Za-z0-9_][A-Za-z0-9_.\-]*)", line)
        if match is None:
            raise VerificationError(f"{SUMS}: not a line of sums and plain file names: {line[:80]!r}.")
        listed[match[2]] = match[1]
    # .py files import each other, so Python may have left its cache beside them: that is no file of the variant
    present = {p.name for p in directory.iterdir() if p.name not in (SUMS, MANIFEST, "__pycache__")}
    if present != listed.keys():
        odd = sorted(present ^ listed.keys())
        raise VerificationError(
            f"the variant must hold the {len(listed)} files of {SUMS}; missing or extra: {', '.join(odd[:5])}. "
            "Export the variant again."
        )
    odd = sorted(name for name in listed if not (directory / name).is_file())
    if odd:
        raise VerificationError(f"{odd[0]} must be a plain file, it is none. Export the variant again.")
    for name, digest in listed.items():
        if sha256_file(directory / name, progress) != digest:
            raise VerificationError(f"{name} must have the digest in {SUMS}, it was changed. Export the variant again.")
    return len(listed)


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
    """Check that every range a graph points to lies inside a plain file of the directory and has the tensor's size.

    Returns {graph file: number of ranges}.
    """
    return {
        path.name: len(check_external(path.name, read_facts(path).external, directory, links=False))
        for path in sorted(directory.glob("*.onnx"))
    }
