"""What `knobcast pick` prints: the choice and what else fits, or what comes closest and what it misses."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table as Grid

from export.command.output import Console
from export.sweep.constraints import BYTES, DECODE, LATENCY, MEMORY, PREFILL, Constraint
from export.sweep.table import Point, Table

if TYPE_CHECKING:
    from export.sweep.difference import Differences
    from export.sweep.lookup import Lookup
    from export.sweep.pick import Pick

COSTS = (LATENCY, PREFILL, DECODE, MEMORY, BYTES)


def facts(point: Point, at: str | None) -> dict[str, object]:
    """A setting for `--json`."""
    total = point.quality.total if point.quality else None
    return {
        "name": point.name,
        "k": point.k,
        "blocks": point.blocks,
        "keep_blocks": list(point.keep_blocks),
        "tokens": point.tokens,
        "form": point.form,
        "dtype": point.dtype,
        "accuracy": total.accuracy if total else None,
        "interval": total.interval if total else None,
        **{quantity.key: quantity.read(point, at) for quantity in COSTS},
        "command": point.command,
    }


def as_record(
    table: Table, found: "Pick", constraints: Sequence[Constraint], differences: "Differences"
) -> dict[str, object]:
    """All of it for `--json`."""
    bounds = [{"constraint": str(c), "limit": c.limit(table, found.at), "unit": c.quantity.unit} for c in constraints]
    others = [{**facts(p, found.at), "difference": _difference(found, p, differences)} for p in found.runners_up]
    record: dict[str, object] = {
        "optimised": found.optimised.word,
        "at": found.at,
        "constraints": bounds,
        "settings": len(table.points),
        "fitting": found.fitting,
        "unmeasured": list(found.unmeasured),
        "best": facts(found.best, found.at) if found.best else None,
        "runners_up": others,
    }
    if found.closest:
        record["closest"] = facts(found.closest, found.at)
        record["failed"] = [
            {"constraint": str(f.constraint), "value": f.value, "limit": f.limit, "by": round(f.excess, 6)}
            for f in found.failed
        ]
    return record


def show_pick(table: Table, found: "Pick", constraints: Sequence[Constraint], differences: "Differences") -> None:
    """The choice as a table, and the command that makes it."""
    console = Console(highlight=False)
    asked = ", ".join(map(str, constraints)) or "no constraint"
    where = f" at {found.at}" if found.at else ""
    best = "most" if found.optimised.most else "least"
    console.print(f"{best} {found.optimised.word}{where} with {asked}", markup=False)
    if found.best is None:
        _show_closest(table, found, constraints, console)
    else:
        counted = f"{found.fitting} of {len(table.points)} settings fit"
        console.print(counted, markup=False)
        _show_settings((found.best, *found.runners_up), found.at, console, constraints)
        for point in found.runners_up:
            console.print(_difference_line(found, point, differences), markup=False, soft_wrap=True)
        console.print(f"\nmake it: {found.best.command}", markup=False, soft_wrap=True)
    if found.unmeasured:
        console.print(
            f"left out, not measured: {', '.join(found.unmeasured[:5])}{' …' if len(found.unmeasured) > 5 else ''}",
            markup=False, soft_wrap=True,
        )  # fmt: skip


def show_lookup(point: Point, fits: bool, made: "Lookup", budget: Constraint) -> None:
    """The rule, and the table's answer."""
    console = Console(highlight=False)
    over = f", {made.tolerance:.3g} of it more allowed" if made.tolerance else ""
    console.print(f"lookup: most accuracy at {made.workload} with {budget}{over}", markup=False)
    if not fits:
        console.print(f"over the budget: no setting keeps to it, this is the quickest by {made.latency}", markup=False)
    _show_settings((point,), made.workload, console)
    console.print(f"\nmake it: {point.command}", markup=False, soft_wrap=True)


def _show_settings(
    points: Sequence[Point], at: str | None, console: Console, constraints: Sequence[Constraint] = ()
) -> None:
    grid = Grid(box=None, pad_edge=False)
    bounded = {constraint.quantity for constraint in constraints}
    shown = [
        quantity
        for quantity in COSTS
        if quantity in (LATENCY, MEMORY, BYTES, *bounded) and any(quantity.read(p, at) is not None for p in points)
    ]
    for title in ("setting", "accuracy", "95 %", *(f"{q.word}, {q.unit}" for q in shown)):
        grid.add_column(title, justify="left" if title == "setting" else "right", no_wrap=True)
    for point in points:
        total = point.quality.total if point.quality else None
        grid.add_row(
            escape(point.name),
            f"{total.accuracy:.3f}" if total else "",
            f"{total.interval[0]:.3f} to {total.interval[1]:.3f}" if total and total.interval else "",
            *(_number(quantity.read(point, at)) for quantity in shown),
        )
    console.print(grid)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _difference(found: "Pick", point: Point, differences: "Differences") -> dict[str, object] | None:
    """Of a runner-up's accuracy to the best one's."""
    from export.sweep.difference import as_dict

    if found.best is None or not found.best.quality or not point.quality:
        return None
    return dict(as_dict(differences.between(point.name, found.best.name)))


def _difference_line(found: "Pick", point: Point, differences: "Differences") -> str:
    difference = _difference(found, point, differences)
    if difference is None:
        return f"{point.name}: its accuracy wasn't measured"
    mean = difference["mean"]
    assert isinstance(mean, float)
    told = "within the error" if difference["within_error"] else "a real difference"
    return f"{point.name}: accuracy {mean:+.3f} on the same questions, {told}"


def _show_closest(table: Table, found: "Pick", constraints: Sequence[Constraint], console: Console) -> None:
    assert found.closest
    console.print(f"none of {len(table.points)} settings fits; closest is {found.closest.name}", markup=False)
    for failed in found.failed:
        unit = f" {failed.constraint.quantity.unit}".rstrip()
        console.print(
            f"  {failed.constraint}: it has {failed.value:.4g}{unit}, the limit is {failed.limit:.4g}{unit}, "
            f"missed by {failed.excess:.1%}",
            markup=False,
        )
    _show_settings((found.closest,), found.at, console, constraints)
    console.print("Loosen the constraint, or sweep more settings.", markup=False)
