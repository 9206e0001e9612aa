"""The table of all settings: every number of the sweep, a row each, with the command that makes the variant."""

from collections.abc import Iterable, Mapping

from export.report.axes import Axis, Scale
from export.report.knobs import form_words, tokens_words
from export.report.markup import Html, Inside, tag
from export.report.tables import Column, Row, accuracy_cells, interval, table
from export.sweep.table import Point, Table

GROUPS = {
    "accuracy": "accuracy",
    "loss": "loss to the full model",
    "tasks": "kinds of questions",
    "latency": "total latency",
    "stages": "latency by stage",
    "memory": "memory and size",
    "work": "work, counted",
    "command": "command",
}
OPEN = ("accuracy", "latency", "command")  # until others are asked for


def variants_table(sweep: Table, tasks: tuple[str, ...], axes: tuple[Axis, ...], scales: Mapping[str, Scale]) -> Html:
    """All columns for all workloads; the script hides those that weren't asked for."""
    shared = [axis for axis in axes if axis.key in ("bytes", "parameters", "active")]
    staged = [axis for axis in axes if axis not in shared]
    columns = [
        Column("setting", number=False, sort="name"),
        Column("k", sort="k"),
        Column("blocks", sort="blocks"),
        Column("tokens", sort="tokens"),
        Column("form", number=False, sort="form"),
    ]
    if sweep.data:
        columns += [
            Column("accuracy", sort="accuracy 0", group="accuracy"),
            Column("95 % interval", group="accuracy"),
            Column("loss to full, points", sort="drop", group="loss"),
            Column("95 % interval of the loss", group="loss"),
            *(Column(task, sort=f"accuracy {n + 1}", group="tasks") for n, task in enumerate(tasks)),
        ]
    for at in sweep.workloads:
        columns += [
            Column(_label(axis, scales, at if len(sweep.workloads) > 1 else None), True, axis.key, axis.group, at)
            for axis in staged
        ]
    columns += [Column(_label(axis, scales, None), sort=axis.key, group=axis.group) for axis in shared]
    columns += [Column("command", number=False, group="command")]
    rows = (_row(sweep, point, tasks, staged, shared, scales) for point in sweep.points)
    return table(
        f"All {len(sweep.points)} settings",
        columns,
        rows,
        name="variants",
        tall=True,
        marks=[{"data_n": n} for n in range(len(sweep.points))],
    )


def _label(axis: Axis, scales: Mapping[str, Scale], at: str | None) -> str:
    unit = scales[axis.key].unit
    return f"{axis.label}{f' of {at}' if at else ''}{f', {unit}' if unit else ''}"


def _row(
    sweep: Table,
    point: Point,
    tasks: tuple[str, ...],
    staged: Iterable[Axis],
    shared: Iterable[Axis],
    scales: Mapping[str, Scale],
) -> Row:
    cells: list[Inside] = [named(sweep, point), point.k, str(point.blocks), tokens_words(point), form_words(point)]
    quality = point.quality
    if sweep.data:
        cells += accuracy_cells(quality.total if quality else None)
        cells += [f"{100 * quality.drop.mean:+.1f}" if quality else "–"]
        cells += [interval(quality.drop.interval, signed=True) if quality else "–"]
        cells += [accuracy_cells(quality.by_task.get(task) if quality else None)[0] for task in tasks]
    cells += [scales[axis.key].show(axis.of(point, at)) for at in sweep.workloads for axis in staged]
    cells += [scales[axis.key].show(axis.of(point, "")) for axis in shared]
    return (*cells, tag("code", point.command))


def named(sweep: Table, point: Point) -> list[Inside]:
    """A setting's name, and what it is besides."""
    badges: list[Inside] = [point.name]
    if point.name == sweep.full:
        badges.append(tag("span", "full", class_="badge"))
    if point.errors:
        badges.append(tag("span", f"{' and '.join(sorted(point.errors))} failed", class_="badge"))
    return badges
