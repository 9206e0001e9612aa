"""`knobcast export --family GRID` and `--member NAME`: what is refused beside them, and the tables people see."""

from collections.abc import Mapping
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from export.command.bars import progress_bars
from export.command.groups import said
from export.command.output import Console, print_json, remarks, show_warnings
from export.command.request import Graphs, Request, Target
from export.command.show import ranking_words, show_next
from export.family.family import export_family, member_name, plan_family, plan_member
from export.files.verification import Verification
from importance.choose import Source, find_scores
from transform.errors import KnobError
from transform.hub_cache import name_of
from transform.plan import Plan
from transform.sizes import active_parameters, weight_bytes
from transform.strict_json import Record

_REPLACED = ("--k", "--blocks", "--keep-blocks", "--drop-blocks")


def export_grid(request: Request, graphs: Graphs, target: Target) -> None:
    """Plan the family and write it."""
    words = [option for option in said(request) if option in _REPLACED]
    words += [option for option in said(graphs) if option in ("--member", "--static")]
    words += [] if graphs.onnx else ["--no-onnx"]
    _refuse(words, "--family", "The grid says k and blocks, and a family is made of graphs")
    source = request.source
    base, members = plan_family(source, str(graphs.family), request.knobs, request.scores)
    tokens = () if base.knobs.tokens is None else (f"t{base.knobs.tokens}",)
    name = "-".join((name_of(source.path), "family", *tokens, *base.extras))
    out = target.out or Path("artifacts") / name
    console = Console(highlight=False)
    dropped = any(plan.removed for plan in members)
    family = source.architecture.model_type
    ranking = find_scores(source.path, request.scores, source.settings.layers, None, family) if dropped else None
    if not target.as_json or not target.dry_run:
        _show_plans(base, members, ranking, console if target.dry_run else remarks)
        warnings = dict.fromkeys(warning for plan in (base, *members) for warning in plan.warnings)
        show_warnings(warnings, *([console] if target.dry_run else []))
    if target.dry_run:
        if target.as_json:
            print_json({"members": [_facts(plan) for plan in members], "out": str(out)})
        return
    with progress_bars(remarks, weight_bytes(base.target)) as (say, progress):
        record = export_family(
            base, members, out, verify=target.verify, force=target.force, say=say, progress=progress, ranking=ranking
        )
    if target.as_json:
        print_json({**record, "out": str(out)})
    else:
        _show_result(record, out, console)
        first = record["members"][0]["name"]
        show_next(out, remarks, pictures=base.vision is not None, form=base.form, member=first)


def member_plan(request: Request, member: str) -> tuple[Plan, str]:
    """The plan of a family's member and its default name."""
    _refuse(said(request), "--member", "A member has all its settings from its family")
    if request.model is None:
        raise KnobError("--member names a member of a family, and no family is given. Give its directory as MODEL.")
    return plan_member(Path(request.model), member)


def _refuse(words: list[str], flag: str, reason: str) -> None:
    if words:
        raise KnobError(
            f"{flag} goes without {', '.join(words)}. {reason}: leave {'it' if len(words) == 1 else 'them'} out."
        )


def _facts(plan: Plan) -> dict[str, object]:
    facts: Mapping[str, object] = plan.as_dict()
    words = ("blocks_kept", "top_k", "parameters", "active_parameters", "bytes", "warnings")
    return {"name": member_name(plan.target), **{word: facts[word] for word in words}}


def _show_plans(base: Plan, members: tuple[Plan, ...], ranking: Source | None, console: Console) -> None:
    console.print(f"{len(members)} members over {base.bytes:,} bytes of weights", style="italic")
    if ranking:
        console.print(f"blocks chosen by {escape(ranking_words(ranking))}", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("member")
    table.add_column("drop blocks")
    table.add_column("active per token", justify="right")
    for plan in members:
        removed = " ".join(map(str, plan.removed)) or "none"
        table.add_row(member_name(plan.target), removed, f"{active_parameters(plan.target):,}")
    console.print(table)


def _show_result(record: Record, target: Path, console: Console) -> None:
    checked = [Verification.parse(entry["verification"]) for entry in record["members"]]
    if None in checked:
        console.print(f"[yellow]not verified[/yellow] {escape(str(target))}", soft_wrap=True)
        return
    worst = max(max(found.differences("onnx_vs_torch").values()) for found in checked if found)
    console.print(f"[green]verified[/green] {escape(str(target))}: {len(checked)} members", soft_wrap=True)
    console.print(f"  onnx vs torch: largest difference {worst:.3g}", style="dim")
