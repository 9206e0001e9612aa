"""Plan a layout from graphs and headers, then write it beside its place and rename it: whole or not at all."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from export.layout import transformers_js, triton
from export.layout.moved import Layout, Moved, write_move
from export.run.family_file import read_family
from export.run.graphs import Graphs
from export.run.session import RunError
from transform.checkpoint import Checkpoint
from transform.errors import KnobError, WriteError
from transform.ownership import MANIFEST, visible_files
from transform.progress import Progress, Say
from transform.read import read_checkpoint
from transform.stage import check_target, staged
from transform.strict_json import Record
from transform.write import write_json

GRAPHS = ("preprocess", "vision", "embedding", "text")


class Runtime(NamedTuple):
    """How one runtime wants things."""

    plan: Callable[[Checkpoint, Mapping[str, Path]], tuple[Moved, ...]]  # which graphs go where
    write_files: Callable[[Layout, Path], None]  # what lies beside them
    takes_provider: bool


RUNTIMES = {
    "transformers.js": Runtime(transformers_js.plan, transformers_js.write_files, takes_provider=False),
    "triton": Runtime(triton.plan, triton.write_files, takes_provider=True),
}


def plan_layout(directory: Path, runtime: str, *, member: str | None = None, provider: str | None = None) -> Layout:
    """The layout of a variant, or of one member of a family, for a runtime."""
    if runtime not in RUNTIMES:
        raise KnobError(f"--for must be one of {', '.join(RUNTIMES)}, got {runtime[:40]!r}. Choose one of them.")
    if provider is not None and not RUNTIMES[runtime].takes_provider:
        raise KnobError(f"--provider is of no use to {runtime}, which is told its device at load. Leave it out.")
    if not directory.is_dir():
        raise RunError(f"A layout is made of a variant's directory: {directory} is none. Check the path.")
    text = "text.onnx" if member is None else read_family(directory).member(member).graph
    if not (directory / text).is_file():
        raise RunError(
            f"A layout is made of a variant's graphs: {directory} has no {text}. Export it with its graphs (without "
            "--no-onnx)."
        )
    variant, form = read_checkpoint(directory), Graphs(directory).form
    provider = provider or form.usual_provider
    options = {str(name): dict(given) for name, given in Graphs(directory, provider).providers}
    files = {name: directory / (text if name == "text" else f"{name}.onnx") for name in GRAPHS}
    present = {name: path for name, path in files.items() if path.is_file()}
    moved = RUNTIMES[runtime].plan(variant, present)
    if provider == "cpu" and any(m.facts.device_only for m in moved):
        raise KnobError(
            "The fused experts of the cuda form run on a GPU alone, got --provider cpu. Give --provider cuda, or "
            "export the variant with --form cpu."
        )
    return Layout(runtime, variant, member, form, provider, options, moved)


def write_layout(
    layout: Layout,
    out: Path,
    *,
    force: bool = False,
    say: Say = lambda _: None,
    progress: Progress = lambda _: None,
) -> Record:
    """Write it to `out` and return what was written, with the bytes each way of copying moved.

    On any error `out` is as it was.
    """
    check_target(out, force, "layout")
    source, target = layout.variant.path.resolve(), out.resolve()
    if target == source or target in source.parents or source in target.parents:
        raise WriteError(f"{out} is the variant, holds it or lies in it; choose another --out.")
    ways: dict[str, int] = {}
    with staged(out, force, "layout") as stage:
        for moved in layout.moved:
            say(moved.target)
            for way, count in write_move(moved, stage, progress).items():
                ways[way] = ways.get(way, 0) + count
        RUNTIMES[layout.runtime].write_files(layout, stage)
        manifest = {**layout.as_dict(), "files": {"names": visible_files(stage)}}
        write_json(stage / MANIFEST, manifest)
    return {**manifest, "ways": ways}
