"""`knobcast export --family GRID` and `--member NAME`: what is refused beside them, and the tables people see."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export.command.options import print_json, stderr
from export.command.show import progress_bars
from export.family.family import export_family, member_name, plan_family, plan_member
from export.files.verification import Verification
from transform.errors import KnobError
from transform.hub_cache import name_of
from transform.knobs import parse_tokens
from transform.plan import Plan, weight_bytes
from transform.read import read_checkpoint
from transform.source import resolve
from transform.strict_json import Record


def export_grid(
    model: str | None,
    grid: str,
    given: Mapping[str, str | None],
    options: Mapping[str, Any],
    out: Path | None,
    verify: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
    revision: str | None = None,
) -> None:
    """Plan the family and write it; `given` are the flags that the grid replaces."""
    _refuse(given, "--family", "The grid says k and blocks, and a family is made of graphs")
    source = read_checkpoint(resolve(model, revision))
    base, members = plan_family(source, grid, **{**options, "tokens": parse_tokens(options["tokens"])})
    tokens = () if base.knobs.tokens is None else (f"t{base.knobs.tokens}",)
    name = "-".join((name_of(source.path), "family", *tokens, *base.extras))
    target = out or Path("artifacts") / name
    if not as_json or not dry_run:
        _show_plans(base, members, Console(highlight=False) if dry_run else stderr)
    if dry_run:
        if as_json:
            print_json({"members": [_facts(plan) for plan in members], "out": str(target)})
        return
    with progress_bars(stderr, weight_bytes(base.target)) as (say, progress):
        record = export_family(base, members, target, verify=verify, force=force, say=say, progress=progress)
    if as_json:
        print_json({**record, "out": str(target)})
    else:
        _show_result(record, target, Console(highlight=False))


def member_plan(
    model: str | None,
    member: str,
    given: Mapping[str, str | None],
    dtype: str,
    form: str | None,
    resize: str | None,
    rule: str | None,
) -> tuple[Plan, str]:
    """The plan of a family's member and its default name; `given` are the flags that the member replaces."""
    changed = {"--resize": resize, "--rule": rule, "--form": form, "--dtype": None if dtype == "source" else dtype}
    _refuse({**given, **changed}, "--member", "A member has all its settings from its family")
    if model is None:
        raise KnobError("--member names a member of a family, and no family is given. Give its directory as MODEL.")
    return plan_member(Path(model), member)


def _refuse(given: Mapping[str, str | None], flag: str, reason: str) -> None:
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise KnobError(
            f"{flag} goes without {', '.join(extra)}. {reason}: leave {'it' if len(extra) == 1 else 'them'} out."
        )


def _facts(plan: Plan) -> Record:
    facts = plan.as_dict()
    words = ("blocks_kept", "top_k", "parameters", "active_parameters", "bytes", "warnings")
    return {"name": member_name(plan.target), **{word: facts[word] for word in words}}


def _show_plans(base: Plan, members: tuple[Plan, ...], console: Console) -> None:
    console.print(f"{len(members)} members over {base.bytes:,} bytes of weights", style="italic")
    table = Table(box=None, pad_edge=False)
    table.add_column("member")
    table.add_column("drop blocks")
    table.add_column("active per token", justify="right")
    for plan in members:
        facts = _facts(plan)
        removed = " ".join(map(str, plan.removed)) or "none"
        table.add_row(facts["name"], removed, f"{facts['active_parameters']:,}")
    console.print(table)
    for warning in dict.fromkeys(warning for plan in (base, *members) for warning in plan.warnings):
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)


def _show_result(record: Record, target: Path, console: Console) -> None:
    checked = [Verification.parse(entry["verification"]) for entry in record["members"]]
    if None in checked:
        console.print(f"[yellow]not verified[/yellow] {escape(str(target))}", soft_wrap=True)
        return
    worst = max(max(found.differences("onnx_vs_torch").values()) for found in checked if found)
    console.print(f"[green]verified[/green] {escape(str(target))}: {len(checked)} members", soft_wrap=True)
    console.print(f"  onnx vs torch: largest difference {worst:.3g}", style="dim")
