"""The main job: a plan becomes a directory that is complete by itself, verified, or nothing at all.

weights and config -> travelling code -> graphs over the same bytes -> gate -> card -> sums -> manifest -> rename.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from export.files.card import write_card
from export.files.integrity import write_sums
from export.files.manifest import write_manifest
from export.graph.static import write_static
from export.run.static_plan import StaticPlan
from transform import molmoe
from transform.checkpoint import OF_A_MACHINE, Checkpoint
from transform.errors import KnobError, WriteError
from transform.packed import write_packed
from transform.plan import Plan
from transform.progress import Progress, Say
from transform.read import read_checkpoint
from transform.special_tokens import check_special_tokens
from transform.stage import check_target, staged
from transform.strict_json import Record
from transform.tokenizer_file import check_tokenizer
from transform.write import write_checkpoint, write_json


def export_variant(
    plan: Plan,
    out: Path,
    *,
    onnx: bool = True,
    verify: bool = True,
    force: bool = False,
    say: Say = lambda _: None,
    progress: Progress = lambda _: None,
    also: Callable[[Path], None] = lambda _: None,
    static: StaticPlan | None = None,
) -> Record:
    """Write the variant to `out` and return its manifest; on any error `out` is as it was.

    `static` adds the graphs of fixed sizes. `also` may add files to the staged directory, before the sums are taken.
    """
    source = plan.source.path.resolve()
    target = out.resolve()
    if target == source or target in source.parents or source in target.parents:
        raise WriteError(f"{out} is the source, holds it or lies in it; choose another --out.")
    check_target(out, force)
    if plan.packing and not onnx:
        raise KnobError("quantised weights are read by graphs alone, and --no-onnx leaves them out. Export them too.")
    check_tokenizer(plan.source.path)
    if onnx:
        check_special_tokens(plan.source)
    if verify:
        from transform.load import check_buildable  # torch takes seconds to import

        check_buildable(plan.source)
    if onnx and verify:
        from export.gate.op_checks import check_form

        check_form(plan.form)  # found out again by the gate, after the weights were written
    with staged(out, force) as stage:
        say("weights")
        if plan.packing:
            write_packed(travelling(plan), stage, *plan.packing, progress=progress)
        else:
            write_checkpoint(travelling(plan), stage, progress)
        if plan.vision:
            _write_code(plan, stage)
        if onnx:
            say("graphs")
            _write_graphs(plan, stage, static)
        verification: Record | str = "skipped"
        if verify:
            from export.gate.choose import run_gate  # torch takes seconds to import

            verification = run_gate(plan, stage, onnx, say)
        say("card, sums, manifest")
        write_card(stage, plan, verification, onnx)
        also(stage)
        sums = write_sums(stage) if verify else "not computed"
        return write_manifest(stage, plan, verification, sums)


def travelling(plan: Plan) -> Checkpoint:
    """The planned checkpoint, whose config names the code that travels along (and none of the source's)."""
    config = {key: value for key, value in plan.target.config.items() if key not in ("auto_map", *OF_A_MACHINE)}
    if plan.vision:
        config["auto_map"] = dict(molmoe.AUTO_MAP)
    side = tuple(n for n in plan.target.side_files if n not in ("preprocessor_config.json", "processor_config.json"))
    return replace(plan.target, config=config, side_files=side if plan.vision else plan.target.side_files)


def _write_code(plan: Plan, stage: Path) -> None:
    vision = plan.vision
    assert vision is not None
    home = Path(molmoe.__file__).parent
    for name in molmoe.TRAVELLING_FILES:
        shutil.copyfile(home / name, stage / name)
    if (stage / "tokenizer.json").is_file():
        policy = molmoe.processor_config(vision.tokens, vision.resize, vision.rule, vision.max_crops)
        write_json(stage / "processor_config.json", policy)


def _write_graphs(plan: Plan, stage: Path, static: StaticPlan | None) -> None:
    from export.files.genai import write_genai_config
    from export.files.io_spec import write_io
    from export.graph.emit import emit_graphs

    written = read_checkpoint(stage)
    crops = plan.vision.crops + 1 if plan.vision and plan.vision.crops is not None else None
    emit_graphs(written, stage, crops, plan.form)
    if static:
        write_static(written, stage, static, plan.form)
    write_io(written, stage, plan.vision.as_dict() if plan.vision else None, plan.form, static)
    write_genai_config(written, stage, plan.form)
