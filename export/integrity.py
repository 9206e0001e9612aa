"""Files against what was recorded: SHA-256 sums, and the byte ranges that graphs point to. No torch.

onnx's own checker accepts offsets beyond the file's end, and nobody checks lengths against shapes: done here.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transform.checkpoint import read_json
from transform.errors import VerificationError
from transform.regular_file import IrregularError, open_regular, read_regular
from transform.side_files import TEMPLATES
from transform.stage import MANIFEST, kind_of
from transform.strict_json import MAX_JSON_BYTES

SUMS = "SHA256SUMS"
_CHUNK = 4 << 20


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
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


def write_sums(directory: Path, progress: Callable[[int], None] | None = None) -> str:
    """Write SHA256SUMS over every file but itself and the manifest (`sha256sum -c` reads it); returns its digest."""
    names = sorted(name for name in _names(directory) if (directory / name).is_file() and name not in (SUMS, MANIFEST))
    lines = [f"{sha256_file(directory / name, progress)}  {name}\n" for name in names]
    (directory / SUMS).write_text("".join(lines), "utf-8")
    return sha256_file(directory / SUMS)


def _names(directory: Path) -> Iterator[str]:
    """Of everything in a directory; the folder of templates is told file by file."""
    for path in directory.iterdir():
        if path.name == TEMPLATES and path.is_dir() and not path.is_symlink():
            yield from (f"{TEMPLATES}/{below.name}" for below in path.iterdir())
        else:
            yield path.name


def check_sums(directory: Path, progress: Callable[[int], None] | None = None) -> int:
    """Compare every file with SHA256SUMS and that with the manifest; returns the number of files."""
    files = read_json(directory / MANIFEST).get("files")
    recorded = files.get("sha256sums") if isinstance(files, dict) else None
    if recorded == "not computed":
        raise VerificationError(f"{directory} was exported with --no-verify: nothing was recorded. Export it verified.")
    try:
        text = read_regular(directory / SUMS, MAX_JSON_BYTES).decode()
    except IrregularError as error:
        raise VerificationError(f"{SUMS}: {error}. Export the variant again.") from error
    except OSError as error:
        raise VerificationError(f"{SUMS}: cannot be read ({error.strerror}). Export the variant again.") from error
    if recorded != hashlib.sha256(text.encode()).hexdigest():
        raise VerificationError(f"{SUMS} must have the digest in {MANIFEST}, it was changed. Export the variant again.")
    listed = {}
    for line in text.splitlines():
        match = re.fullmatch(rf"([0-9a-f]{{64}})  ((?:{TEMPLATES}/)?[A-Za-z0-9_][A-Za-z0-9_.\-]*)", line)
        if match is None:
            raise VerificationError(f"{SUMS}: not a line of sums and plain file names: {line[:80]!r}.")
        listed[match[2]] = match[1]
    # .py files import each other, so Python may have left its cache beside them: that is no file of the variant
    present = {name for name in _names(directory) if name not in (SUMS, MANIFEST, "__pycache__")}
    if present != listed.keys():
        odd = sorted(present ^ listed.keys())
        raise VerificationError(
            f"the variant must hold the {len(listed)} files of {SUMS}; missing or extra: {', '.join(odd[:5])}. "
            "Export the variant again."
        )
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
    """Every initializer of a graph and of the branches inside it that keeps its data in another file."""
    import onnx

    for initializer in graph.initializer:
        if initializer.data_location == onnx.TensorProto.EXTERNAL:
            yield initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from external_tensors(attribute.g)


def check_graph_bounds(directory: Path) -> dict[str, int]:
    """Check that every range a graph points to lies inside a plain file of the directory and has the tensor's size.

    Returns {graph file: number of ranges}.
    """
    import onnx

    item_bits = {
        onnx.TensorProto.FLOAT: 32,
        onnx.TensorProto.FLOAT16: 16,
        onnx.TensorProto.BFLOAT16: 16,
        onnx.TensorProto.UINT8: 8,
    }
    counts = {}
    for path in sorted(directory.glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        count = 0
        for tensor in external_tensors(model.graph):
            entry = {item.key: item.value for item in tensor.external_data}
            location, offset, length = entry["location"], int(entry["offset"]), int(entry["length"])
            target = directory / location
            wanted = math.prod(tensor.dims) * item_bits[tensor.data_type] // 8
            if "/" in location or target.is_symlink() or not target.is_file():
                raise VerificationError(
                    f"{path.name}: {tensor.name} must lie in a plain file of the variant, its location is {location!r}."
                )
            size = target.stat().st_size
            if length != wanted or offset < 0 or offset + length > size:
                raise VerificationError(
                    f"{path.name}: {tensor.name} must be {wanted:,} bytes inside {location} ({size:,} bytes), the "
                    f"graph points to {length:,} bytes from {offset:,}. A file was truncated or replaced: export again."
                )
            count += 1
        counts[path.name] = count
    return counts
