"""Where a derived graph goes, and what stands beside it."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from export.derive.record import is_unfinished
from transform.errors import WriteError
from transform.knobs import canonical_name
from transform.strict_json import read_json

MARK = "knobcast.derived"  # metadata of the graphs made here: they alone may be replaced
OVERLAY_OF = "genai_config.json"
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
    if graph.is_symlink():
        raise WriteError(
            f"a graph's weights lie beside the file itself, and {graph} is a link. Give {graph.resolve()}, or in a "
            f"hub's cache copy the directory to plain files first: cp -rL {graph.parent} DIR."
        )
    if out.resolve().parent != graph.resolve().parent:
        raise WriteError(
            f"--out must lie beside the graph, in {graph.parent}: weights are named relative to it, and from elsewhere "
            f"onnxruntime refuses to read them; got {out}. Give a name in that directory."
        )
    if out.suffix != ".onnx" or out.name.startswith("."):
        raise WriteError(f"--out must be the name of an .onnx file, got {out.name!r}. Rename it.")
    if not os.path.lexists(out):
        return
    force = force or is_unfinished(out)
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
