"""What people see of a sweep: its plan with the cost, and the table of what was measured."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Shown

from transform.sizes import active_parameters

if TYPE_CHECKING:
    from export.sweep.run import Sweep
    from export.sweep.table import Point, Table


class SweepFacts(TypedDict):
    """What is to do. `answers`: samples times budgets and weights, in so many `jobs`; `block_evaluations`: per picture,
    all settings of a budget together, and one by one; `decoders`: graphs that are timed."""

    settings: list[str]
    full: str
    pruned: dict[str, str]
    chosen_by: str
    workloads: list[str]
    samples: int
    answers: int
    jobs: int
    block_evaluations: int
    naive_block_evaluations: int
    families: int
    decoders: int


def sweep_facts(made: "Sweep") -> SweepFacts:
    """From the plan alone."""
    from export.sweep.families import graph_of
    from export.sweep.quality import groups_of
    from importance.configurations import Cost

    weights = made.by_weights()
    groups = [group for members in weights.values() for group in groups_of(members).values()]
    cost = sum((Cost.of([member.config for member in group]) for group in groups), Cost())
    samples = 0 if made.questions is None else len(made.questions.samples)
    others = [members for members in weights.values() if made.clock is not None or not members[0].as_source]
    decoders = {(key, graph_of(member)) for key, members in weights.items() for member in members}
    return {
        "settings": [setting.name for setting in made.settings],
        "full": made.full.name,
        "pruned": dict(made.pruned),
        "chosen_by": made.chosen_by,
        "workloads": list(made.workloads),
        "samples": samples,
        "answers": samples * len(groups),
        "jobs": 0 if made.questions is None else len(made.questions.shards()) * len(groups),
        "block_evaluations": cost.block_evaluations if samples else 0,
        "naive_block_evaluations": cost.naive_block_evaluations if samples else 0,
        "families": len(others),
        "decoders": 0 if made.clock is None else len(decoders),
    }


def show_plan(made: "Sweep", facts: SweepFacts, seconds: float | None, console: Console) -> None:
    """Every setting, and what measuring them takes; `seconds`: of the questions, as a small part of them says."""
    table = Shown(box=None, pad_edge=False)
    for column in ("setting", "drop blocks", "active per token", "bytes"):
        table.add_column(column, justify="left" if column in ("setting", "drop blocks") else "right")
    for setting in made.settings:
        removed = " ".join(map(str, setting.plan.removed)) or "none"
        table.add_row(
            setting.name + (" (full)" if setting.name == facts["full"] else ""),
            removed, f"{active_parameters(setting.plan.target):,}", f"{setting.plan.bytes:,}",
        )  # fmt: skip
    console.print(table)
    for name, why in facts["pruned"].items():
        console.print(f"{name}: {escape(why)}", soft_wrap=True)
    console.print(f"{len(facts['settings'])} settings; blocks: {escape(facts['chosen_by'])}", soft_wrap=True)
    if facts["samples"]:
        console.print(
            f"{facts['samples']} samples, {facts['answers'] // facts['samples']} passes over them in {facts['jobs']} "
            f"jobs: "
            f"{facts['block_evaluations']:,} block evaluations per picture (one by one: "
            f"{facts['naive_block_evaluations']:,})",
            soft_wrap=True,
        )
    if seconds is not None:
        whole = f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
        console.print(
            f"questions: about {whole} on this machine, one job after another; graphs and their timing not counted",
            soft_wrap=True,
        )
    if facts["decoders"]:
        console.print(
            f"{facts['decoders']} decoders timed on {', '.join(facts['workloads'])}, from {facts['families']} "
            f"famil{'y' if facts['families'] == 1 else 'ies'} of graphs",
            soft_wrap=True,
        )


def show_sweep(table: "Table", out: Path, console: Console) -> None:
    """A row per setting; what failed, by its reason; what to do next."""
    shown = Shown(box=None, pad_edge=False)
    workloads = list(table.workloads)
    for column in ("setting", "accuracy", "95 %", *(f"{name} ms" for name in workloads), "peak MB", "bytes"):
        shown.add_column(column, justify="left" if column == "setting" else "right")
    for point in table.points:
        shown.add_row(*_row(point, workloads))
    console.print(shown)
    reasons: dict[tuple[str, str], list[str]] = {}
    for point in table.points:
        for part, why in point.errors.items():
            reasons.setdefault((part, why), []).append(point.name)
    for (part, why), names in reasons.items():
        console.print(f"[yellow]no {part}[/yellow] of {', '.join(names)}: {escape(why)}", soft_wrap=True)
    console.print(f"[green]done[/green] {escape(str(out))}: {len(table.points)} settings", soft_wrap=True)
    there = escape(shlex.quote(str(out)))
    console.print(f"[dim]next: knobcast report {there}, knobcast pick {there} --latency-ms …[/dim]", soft_wrap=True)


def _row(point: "Point", workloads: list[str]) -> list[str]:
    quality = point.quality
    interval = quality.total.interval if quality else None
    latencies = [point.latency.get(name) for name in workloads]
    peaks = [each.peak_bytes for each in latencies if each and each.peak_bytes]
    return [
        point.name,
        f"{quality.total.accuracy:.3f}" if quality else "–",
        f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "–",
        *(f"{each.total_ms:.1f}" if each else "–" for each in latencies),
        f"{max(peaks) / 1e6:.0f}" if peaks else "–",
        f"{point.cost.bytes:,}",
    ]
