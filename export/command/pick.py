"""`knobcast pick`: the setting of a finished sweep that fits a device, and why; written as a variant if asked to."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from export.command.options import Json
from export.command.output import print_json, remarks
from transform.errors import KnobError

if TYPE_CHECKING:
    from export.sweep.constraints import Constraint, Quantity
    from export.sweep.lookup import Lookup
    from export.sweep.table import Point, Table

Bound = str | None


@dataclass(frozen=True)
class Bounds:
    """What the device affords; all must hold."""

    latency_ms: Annotated[Bound, typer.Option("--latency-ms", help="All of the workload: 200, or 0.8x.")] = None
    prefill_ms: Annotated[Bound, typer.Option("--prefill-ms", help="The prompt: 120, or 0.8x.")] = None
    decode_ms: Annotated[Bound, typer.Option("--decode-ms", help="One further token: 15, or 0.8x.")] = None
    memory_mb: Annotated[Bound, typer.Option("--memory-mb", help="Peak, as measured: 6000, or 0.8x.")] = None
    bytes_mb: Annotated[Bound, typer.Option("--bytes-mb", help="Weights and graphs: 4000, or 0.5x.")] = None
    accuracy: Annotated[
        list[str] | None, typer.Option("--accuracy", help="0.85, '>=0.95x', 'colour>=0.9'; repeat it for several.")
    ] = None
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", min=0, help="Costs may exceed their bounds by this part: 0.05.")
    ] = None

    def parse(self, tolerance: float) -> "list[Constraint]":
        """All of them; raises KnobError."""
        from export.sweep.constraints import ACCURACY, BYTES, DECODE, LATENCY, MEMORY, PREFILL, parse_constraint

        costs = (
            (LATENCY, self.latency_ms),
            (PREFILL, self.prefill_ms),
            (DECODE, self.decode_ms),
            (MEMORY, self.memory_mb),
            (BYTES, self.bytes_mb),
        )
        found = [parse_constraint(quantity, text, tolerance) for quantity, text in costs if text is not None]
        return found + [parse_constraint(ACCURACY, text) for text in self.accuracy or ()]


@dataclass(frozen=True)
class Choosing:
    """How it is chosen, and where the choice goes."""

    at: Annotated[str | None, typer.Option("--at", help="The workload that times are of; absent: the only one.")] = None
    optimize: Annotated[
        str | None, typer.Option("--optimize", help="accuracy, latency, prefill, decode, memory or bytes.")
    ] = None
    rule: Annotated[
        str | None, typer.Option("--rule", help="lookup: the most accurate within --latency-ms, else the quickest.")
    ] = None
    lookup: Annotated[Path | None, typer.Option("--lookup", help="Write the table of all budgets here (.json).")] = None
    export: Annotated[Path | None, typer.Option("--export", help="Write the variant here, verified.")] = None
    model: Annotated[str | None, typer.Option("--model", help="Its source; absent: the sweep's.")] = None
    force: Annotated[bool, typer.Option("--force", help="Replace what --export and --lookup name.")] = False


def pick(
    directory: Annotated[Path, typer.Argument(help="The --out of a finished sweep.")],
    bounds: Bounds,
    choosing: Choosing,
    as_json: Json = False,
) -> None:
    """Choose the best setting of a sweep within what a device affords."""
    from export.command.show_pick import as_record, facts, show_lookup, show_pick
    from export.sweep.constraints import check_constraints, choose_workload, quantity_named
    from export.sweep.difference import Differences
    from export.sweep.pick import pick as choose
    from export.sweep.table import read_table

    table = read_table(directory)
    at = choose_workload(table, choosing.at)
    if choosing.rule is not None or choosing.lookup is not None:
        by_lookup = _look_up(table, bounds, choosing, at)
        if by_lookup is None:
            return
        point, fits, made, budget = by_lookup
        if as_json:
            print_json({"rule": "lookup", "fits": fits, "tolerance": made.tolerance, "best": facts(point, at)})
        else:
            show_lookup(point, fits, made, budget)
        _export(table, point, directory, choosing)
        return
    constraints = bounds.parse(bounds.tolerance or 0.0)
    check_constraints(table, constraints, at)
    optimised = None if choosing.optimize is None else quantity_named(choosing.optimize, "--optimize")
    found = choose(table, constraints, at, optimised)
    differences = Differences(directory)
    if as_json:
        print_json(as_record(table, found, constraints, differences))
    else:
        show_pick(table, found, constraints, differences)
    if found.best is None:
        raise typer.Exit(1)
    _export(table, found.best, directory, choosing)


def _look_up(
    table: "Table", bounds: Bounds, choosing: Choosing, at: str | None
) -> "tuple[Point, bool, Lookup, Constraint] | None":
    """(setting, whether it keeps to the budget, the table, the budget); None: the table alone was asked for, and is
    written."""
    from export.sweep.constraints import LATENCY, PREFILL
    from export.sweep.lookup import TOLERANCE, make_lookup

    if choosing.rule not in (None, "lookup"):
        raise KnobError(f"--rule must be lookup, or left out; got {choosing.rule[:40]!r}.")
    said: dict[Quantity, str] = {
        quantity: text
        for quantity, text in ((LATENCY, bounds.latency_ms), (PREFILL, bounds.prefill_ms))
        if text is not None
    }
    others = (bounds.decode_ms, bounds.memory_mb, bounds.bytes_mb, bounds.accuracy, choosing.optimize)
    if len(said) > 1 or any(other is not None for other in others):
        raise KnobError("a look-up table goes by one time: give --latency-ms or --prefill-ms, and no other bound.")
    if choosing.rule and not said:
        raise KnobError("--rule lookup needs a budget: give --latency-ms or --prefill-ms.")
    quantity = next(iter(said), LATENCY)
    made = make_lookup(table, quantity, at, TOLERANCE if bounds.tolerance is None else bounds.tolerance)
    if choosing.lookup is not None:
        from importance.atomic import write_atomically

        write_atomically(choosing.lookup, made.text(), choosing.force)
        remarks.print(f"{choosing.lookup}: {len(made.entries)} settings by {quantity.word}", markup=False)
    if not said:
        return None
    from export.sweep.constraints import parse_constraint

    budget = parse_constraint(quantity, said[quantity])
    entry, fits = made.setting(budget.limit(table, at))
    return table.point(entry.name), fits, made, budget


def _export(table: "Table", point: "Point", directory: Path, choosing: Choosing) -> None:
    """The variant of a setting of the sweep in `directory`, from the source again, with what was measured of it."""
    if choosing.export is None:
        return
    from export.command.bars import progress_bars
    from export.command.output import show_warnings
    from export.sweep.variant import plan_on, swept_source
    from export.variant import export_variant
    from importance.choose import SCORES, find_scores
    from transform.sizes import weight_bytes

    plan = plan_on(swept_source(table, choosing.model), point)
    kept = directory / SCORES  # where scores chose the sweep's blocks
    ranking = find_scores(None, kept, table.source.layers) if plan.removed and kept.is_file() else None
    show_warnings(plan.warnings)
    with progress_bars(remarks, weight_bytes(plan.target)) as (say, progress):
        export_variant(
            plan, choosing.export, force=choosing.force, say=say, progress=progress, ranking=ranking,
            measured=table.measured(point),
        )  # fmt: skip
    remarks.print(f"{choosing.export}: {point.name}, verified", markup=False, soft_wrap=True)
