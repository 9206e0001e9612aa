"""The main job: a plan becomes a directory that is complete by itself, verified, or nothing at all.

`write`: weights and config, travelling code, graphs over the same bytes; `prove`: the gate; `seal`: card, sums,
manifest; then it gets its name. A family is made of the same steps.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from export.files.card import write_card
from export.files.integrity import write_sums
from export.files.manifest import provenance_of, write_manifest
from export.files.measured import Measured
from export.files.verification import Verification
from export.graph.static import write_static
from export.run.static_plan import StaticPlan
from importance.choose import Source
from transform.checkpoint import OF_A_MACHINE, Checkpoint
from transform.errors import KnobError, WriteError
from transform.image_settings import PREPROCESSOR, PROCESSOR
from transform.packed import write_packed
from transform.picture_processor import write_budget
from transform.plan import Plan
from transform.progress import Progress, Say
from transform.read import read_checkpoint
from transform.side_files import VIDEO
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
    static: StaticPlan | None = None,
    ranking: Source | None = None,
    measured: Measured | None = None,
) -> Record:
    """Write the variant to `out` and return its manifest; on any error `out` is as it was.

    `static` adds the graphs of fixed sizes. `ranking`: what the blocks were chosen by, for graphs, card and manifest;
    `measured`: what a sweep measured of this setting, for card and manifest.
    """
    onnx = onnx and plan.no_graphs is None
    check(plan, out, onnx=onnx, verify=verify, force=force)
    with staged(out, force) as stage:
        written = write(plan, stage, onnx=onnx, static=static, ranking=ranking, say=say, progress=progress)
        verification = prove(plan, written, onnx=onnx, say=say) if verify else None
        return seal(plan, written, verification, onnx=onnx, ranking=ranking, measured=measured, say=say)


def check(plan: Plan, out: Path, *, onnx: bool = True, verify: bool = True, force: bool = False) -> None:
    """Refuse before any work what could not be written, or could not be proven once it is; touches nothing."""
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

        check_form(plan.form, plan.activations)


def write(
    plan: Plan,
    stage: Path,
    *,
    onnx: bool = True,
    static: StaticPlan | None = None,
    ranking: Source | None = None,
    say: Say = lambda _: None,
    progress: Progress = lambda _: None,
) -> Checkpoint:
    """Weights, config, travelling code and graphs into the folder `stage`; returns the checkpoint that it now holds.
    The graphs say where they come from, and what the blocks were chosen by (`ranking`)."""
    say("weights")
    if plan.packing:
        activations = plan.activations or plan.form.activations[0]
        write_packed(travelling(plan), stage, plan.packing, progress, activations)
    else:
        write_checkpoint(travelling(plan), stage, progress)
    if plan.vision:
        _write_code(plan, stage)
    if plan.pictures:
        write_budget(stage, plan.pictures)
    written = read_checkpoint(stage)
    if onnx:
        say("graphs")
        _write_graphs(plan, written, static, ranking)
    return written


def prove(plan: Plan, written: Checkpoint, *, onnx: bool = True, say: Say = lambda _: None) -> Verification:
    """What `write` gave equals the source with the plan's knobs at run time, and its graphs equal it; or
    VerificationError. Adds the golden outputs."""
    from export.gate.choose import run_gate  # torch takes seconds to import

    return run_gate(plan, written, onnx, say)


def seal(
    plan: Plan,
    written: Checkpoint,
    verification: Verification | None,
    *,
    onnx: bool = True,
    card: Sequence[str] = (),
    ranking: Source | None = None,
    measured: Measured | None = None,
    say: Say = lambda _: None,
) -> Record:
    """Card, with more lines at its end, sums and manifest: nothing may be added afterwards. Returns the manifest.

    `verification` None: nothing was proven, and no sums are taken.
    """
    say("card, sums, manifest")
    write_card(written.path, plan, verification, onnx, card, ranking, measured)
    sums = write_sums(written.path, known=verification.sums) if verification else "not computed"
    return write_manifest(written, plan, verification, sums, measured, ranking)


def travelling(plan: Plan) -> Checkpoint:
    """The planned checkpoint, whose config names the code that travels along (and none of the source's)."""
    config = {key: value for key, value in plan.target.config.items() if key not in ("auto_map", *OF_A_MACHINE)}
    images = plan.target.architecture.images
    if images:
        config["auto_map"] = dict(import_module(images.code).AUTO_MAP)
    side = tuple(name for name in plan.target.side_files if name not in (PREPROCESSOR, PROCESSOR, VIDEO))
    return replace(plan.target, config=config, side_files=side if images else plan.target.side_files)


def _write_code(plan: Plan, stage: Path) -> None:
    vision, images = plan.vision, plan.target.architecture.images
    assert vision is not None
    assert images is not None
    code = import_module(images.code)
    for name in code.TRAVELLING_FILES:
        shutil.copyfile(Path(code.__path__[0]) / name, stage / name)
    policy = code.processor_config(vision.tokens, vision.resize, vision.rule, vision.max_crops)
    write_json(stage / PROCESSOR, policy)


def _write_graphs(plan: Plan, written: Checkpoint, static: StaticPlan | None, ranking: Source | None) -> None:
    from export.files.genai import write_genai_config
    from export.files.io_spec import write_io
    from export.graph.emit import emit_graphs
    from export.run.io_file import policy_in

    stage = written.path
    crops = plan.vision.crops + 1 if plan.vision and plan.vision.crops is not None else None
    vision = plan.vision.as_dict() if plan.vision else None
    notes = provenance_of(plan, ranking).of
    emit_graphs(written, stage, crops, plan.form, policy_in(vision) if vision else None, notes)
    if static:
        write_static(written, stage, static, plan.form, notes)
    write_io(written, stage, plan.form, vision, static)
    write_genai_config(written, stage, plan.form)
