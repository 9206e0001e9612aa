"""`knobcast plan` and `knobcast export`: what a setting would do, and the main job."""

from pathlib import Path

from export.command.options import Json
from export.command.output import Console, print_json, remarks, show_warnings
from export.command.request import Graphs, Request, Target
from export.command.usage import Usage
from transform.errors import KnobError


def plan(request: Request, usage: Usage, as_json: Json = False) -> None:
    """Show what a setting would do, from headers alone, and what it would take on a device."""
    from export.command.show import ranking_facts, show_plan

    made, ranking = request.plan, request.ranking
    expected = usage.estimate(made)
    if as_json:
        ranked = {"scores": ranking_facts(ranking)} if ranking else {}
        print_json({**made.as_dict(), **ranked, **({"estimate": expected.as_dict()} if expected else {})})
    else:
        console = Console(highlight=False)
        show_plan(made, ranking, console)
        if expected:
            expected.show(console)
        show_warnings(made.warnings, console)


def export(request: Request, graphs: Graphs, target: Target) -> None:
    """Write a fixed, verified, standalone variant, or a family of them over one set of weights."""
    from export.command.bars import progress_bars
    from export.command.show import ranking_facts, show_next, show_plan, show_result
    from export.graph.static import parse_static, plan_static
    from export.variant import export_variant
    from transform.sizes import weight_bytes

    cache, chunk = parse_static(graphs.static, graphs.prompt)
    if cache is not None and not graphs.onnx:
        raise KnobError("--static adds graphs, and --no-onnx leaves all of them out. Leave out one of the two.")
    if graphs.family is not None:
        from export.command.family import export_grid

        if target.measured is not None:
            raise KnobError("--measured is of one setting, and --family makes several. Leave one of the two out.")
        export_grid(request, graphs, target)
        return
    if graphs.member is not None:
        from export.command.family import member_plan

        (made, name), ranking = member_plan(request, graphs.member), None
    else:
        made, name, ranking = request.plan, request.plan.name, request.ranking
    fixed = plan_static(made, cache, chunk) if cache is not None else None
    measured = None
    if target.measured is not None:
        from export.sweep.table import read_table
        from export.sweep.variant import measured_of

        measured = measured_of(read_table(target.measured), made)
    out = target.out or Path("artifacts") / (f"{name}-s{cache}" if cache is not None else name)
    console = Console(highlight=False)
    if not target.as_json or not target.dry_run:
        show_plan(made, ranking, console if target.dry_run else remarks)
        show_warnings(made.warnings, *([console] if target.dry_run else []))
    if target.dry_run:
        if target.as_json:
            more = {"static": fixed.as_dict()} if fixed else {}
            ranked = {"scores": ranking_facts(ranking)} if ranking else {}
            print_json({**made.as_dict(), **more, **ranked, "out": str(out)})
        return
    with progress_bars(remarks, weight_bytes(made.target)) as (say, progress):
        manifest = export_variant(
            made, out, onnx=graphs.onnx, verify=target.verify, force=target.force, say=say, progress=progress,
            static=fixed, ranking=ranking, measured=measured,
        )  # fmt: skip
    if target.as_json:
        print_json({**manifest, "out": str(out)})
    else:
        show_result(manifest, out, console)
        show_next(out, remarks, pictures=made.vision is not None, form=made.form, onnx=graphs.onnx)
