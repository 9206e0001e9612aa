"""Where a derived graph goes, what stands beside it, and the record of a variant that gets another graph."""

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export.integrity import SUMS, sha256_file
from transform.checkpoint import read_json
from transform.errors import VerificationError, WriteError
from transform.knobs import canonical_name
from transform.stage import MANIFEST, alive
from transform.write import write_json

MARK = "knobcast.derived"  # metadata of the graphs made here: they alone may be replaced
OVERLAY_OF = "genai_config.json"
_STAGE = re.compile(r"\..+\.stage-([0-9]+)(\.ours|\.theirs)?")
_SETTING = re.compile(r"-(k[0-9x.]+-)?b[0-9]+$")


def setting_name(top_k: Sequence[int] | None, blocks: int) -> str:
    """`k4-b12`, or `b12` where k isn't known."""
    return f"b{blocks}" if top_k is None else canonical_name(tuple(top_k), None)


def default_out(graph: Path, name: str) -> Path:
    """Beside the graph: `text-k4-b12.onnx` from `text.onnx` and from `text-k8-b16.onnx`."""
    return graph.with_name(f"{_SETTING.sub('', graph.stem)}-{name}.onnx")


def overlay_for(graph: Path, out: Path) -> Path | None:
    """The file that makes onnxruntime-genai run `out`: `genai_config-k4-b12.json` of `text-k4-b12.onnx`.

    None where the directory has no configuration of it, or one of another graph than `graph` comes from.
    """
    config = out.with_name(OVERLAY_OF)
    configured = _filename(config) if config.is_file() else None
    if configured is None or _SETTING.sub("", Path(configured).stem) != _SETTING.sub("", graph.stem):
        return None
    name = _SETTING.search(out.stem)
    overlay = out.with_name(f"genai_config-{name[0][1:] if name else out.stem}.json")
    if os.path.lexists(overlay) and _filename(overlay) != out.name:
        raise WriteError(f"{overlay.name} exists and belongs to another graph than {out.name}. Choose another --out.")
    return overlay


def _filename(config: Path) -> str | None:
    model = read_json(config).get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    name = decoder.get("filename") if isinstance(decoder, dict) else None
    return name if isinstance(name, str) else None


def check_out(out: Path, graph: Path, force: bool) -> None:
    """Refuse a target that can't be, or that isn't ours to replace; touches nothing."""
    if out.resolve().parent != graph.resolve().parent:
        raise WriteError(
            f"--out must lie beside the graph, in {graph.parent}: weights are named relative to it, and from elsewhere "
            f"onnxruntime refuses to read them; got {out}. Give a name in that directory."
        )
    if out.suffix != ".onnx" or out.name.startswith("."):
        raise WriteError(f"--out must be the name of an .onnx file, got {out.name!r}. Rename it.")
    if graph.is_symlink():
        raise WriteError(f"{graph} is a link; weights lie beside the file itself. Give {graph.resolve()}.")
    if not os.path.lexists(out):
        return
    if not force or out.is_symlink() or not out.is_file() or out.samefile(graph):
        raise WriteError(f"{out} exists; choose another --out" + ("." if force else ", or pass --force to replace it."))
    if not is_derived(out):
        raise WriteError(f"--force replaces only graphs that derive has made; {out} isn't one. Choose another --out.")


def is_derived(path: Path) -> bool:
    """Whether a graph carries our mark."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's own exception type depends on its implementation
        return False
    return any(item.key == MARK for item in model.metadata_props)


def check_record(directory: Path, verify: bool) -> None:
    """In a verified variant, sums and manifest must fit each other, and only verified graphs may be added."""
    if not is_recorded(directory):
        return
    if not verify:
        raise WriteError(
            f"{directory} is a verified variant, and --no-verify would add a graph that isn't. Leave --no-verify out."
        )
    _read_sums(directory)


def extend_record(directory: Path, entry: Mapping[str, Any], files: Sequence[Path]) -> None:
    """A variant's sums cover the new files, and its manifest lists the graph under `derived`. One process at a time."""
    if not (directory / MANIFEST).is_file():
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        _extend(directory, entry, files)
    finally:
        os.close(handle)


def _extend(directory: Path, entry: Mapping[str, Any], files: Sequence[Path]) -> None:
    manifest = read_json(directory / MANIFEST)
    derived = manifest.get("derived")
    manifest["derived"] = {**(derived if isinstance(derived, dict) else {}), str(entry["graph"]): dict(entry)}
    if is_recorded(directory):
        lines = {line.split("  ", 1)[1]: line for line in _read_sums(directory).splitlines()}
        lines |= {file.name: f"{sha256_file(file)}  {file.name}" for file in files}
        text = "".join(f"{lines[name]}\n" for name in sorted(lines))
        manifest["files"]["sha256sums"] = hashlib.sha256(text.encode()).hexdigest()
        with appearing(directory / SUMS) as stage:
            stage.write_text(text, "utf-8")
    with appearing(directory / MANIFEST) as stage:
        write_json(stage, manifest)


def is_recorded(directory: Path) -> bool:
    """Whether a directory is a verified variant."""
    return _recorded(directory) is not None


def _recorded(directory: Path) -> str | None:
    """The digest of the sums that the manifest holds; None where there is no verified variant."""
    if not (directory / MANIFEST).is_file():
        return None
    files = read_json(directory / MANIFEST).get("files")
    recorded = files.get("sha256sums") if isinstance(files, dict) else None
    return None if recorded in (None, "not computed") else str(recorded)


def _read_sums(directory: Path) -> str:
    try:
        data = (directory / SUMS).read_bytes()
    except OSError as error:
        raise VerificationError(f"{SUMS}: cannot be read ({error.strerror}). Export the variant again.") from error
    if hashlib.sha256(data).hexdigest() != _recorded(directory):
        raise VerificationError(
            f"{SUMS} must have the digest in {MANIFEST}, it was changed: nothing is added to it. "
            "Export the variant again."
        )
    return data.decode("utf-8")


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A hidden file beside `path` that takes its place when the block ends without an error.

    Those of killed runs are removed: a variant with them doesn't verify.
    """
    for left in path.parent.iterdir():
        match = _STAGE.fullmatch(left.name)
        if match and left.is_file() and not alive(int(match[1])):
            left.unlink(missing_ok=True)
    stage = path.with_name(f".{path.name}.stage-{os.getpid()}")
    try:
        yield stage
        with stage.open("rb+") as file:
            os.fsync(file.fileno())
        stage.replace(path)
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror or error}; nothing was written.") from error
    finally:
        stage.unlink(missing_ok=True)
