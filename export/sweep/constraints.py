"""What a device affords, as words of the command line -> constraints on a sweep's settings.

A bound is a number, or a multiple of what the sweep's full setting has: `200`, `0.8x`. Bounds on costs are upper ones,
on accuracy lower ones, of all questions or of one task: `0.85`, `>=0.95x`, `colour>=0.9`.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from export.sweep.table import Latency, Point, Table
from transform.errors import KnobError

_BOUND = re.compile(r"(?:(?P<task>.*?)\s*(?P<sign>[<>]=))?\s*(?P<number>\d{1,12}(?:\.\d{1,12})?)\s*(?P<times>x?)", re.S)


@dataclass(frozen=True)
class Quantity:
    """What can be bounded or optimised. `word`: of the option; `most`: more is better; `read`: (setting, workload) ->
    its value in `unit`, None where it wasn't measured."""

    word: str
    unit: str
    most: bool
    read: Callable[[Point, str | None], float | None]

    @property
    def key(self) -> str:
        """In JSON: `latency_ms`."""
        return f"{self.word}_{self.unit.lower()}" if self.unit else self.word

    @property
    def option(self) -> str:
        """On the command line: `--latency-ms`."""
        return f"--{self.key.replace('_', '-')}"


def _timed(read: Callable[[Latency], float | None]) -> Callable[[Point, str | None], float | None]:
    def of(point: Point, workload: str | None) -> float | None:
        found = None if workload is None else point.latency.get(workload)
        return None if found is None else read(found)

    return of


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e6


ACCURACY = Quantity("accuracy", "", True, lambda p, _: p.quality.total.accuracy if p.quality else None)
LATENCY = Quantity("latency", "ms", False, _timed(lambda found: found.total_ms))
PREFILL = Quantity("prefill", "ms", False, _timed(lambda found: found.prefill_ms))
DECODE = Quantity("decode", "ms", False, _timed(lambda found: found.decode_ms))
MEMORY = Quantity("memory", "MB", False, _timed(lambda found: _megabytes(found.peak_bytes)))
BYTES = Quantity("bytes", "MB", False, lambda p, _: p.cost.bytes / 1e6)
QUANTITIES = (ACCURACY, LATENCY, PREFILL, DECODE, MEMORY, BYTES)
TIMES = (LATENCY, PREFILL, DECODE)


def quantity_named(word: str, option: str) -> Quantity:
    """The one of this word; raises KnobError."""
    found = next((quantity for quantity in QUANTITIES if quantity.word == word), None)
    if found is None:
        raise KnobError(f"{option} must be one of {', '.join(q.word for q in QUANTITIES)}, got {word[:40]!r}.")
    return found


@dataclass(frozen=True)
class Constraint:
    """`quantity` of a setting, or its accuracy on `task`, is within `bound`: in its unit, or `relative` to the full
    setting's."""

    quantity: Quantity
    bound: float
    relative: bool = False
    task: str | None = None

    def value(self, point: Point, at: str | None) -> float | None:
        """What the setting has; None: it wasn't measured."""
        if self.task is None:
            return self.quantity.read(point, at)
        share = point.quality.by_task.get(self.task) if point.quality else None
        return None if share is None else share.accuracy

    def limit(self, table: Table, at: str | None) -> float:
        """The bound in the quantity's unit; raises KnobError where it refers to what the full setting lacks."""
        if not self.relative:
            return self.bound
        full = self.value(table.point(table.full), at)
        if full is None:
            raise KnobError(
                f"{self} refers to the full setting {table.full}, whose {self.quantity.word} wasn't measured. Give a "
                "number without x, or run the sweep again, which does what is missing."
            )
        return self.bound * full

    def excess(self, value: float, limit: float) -> float:
        """How far `value` is beyond the limit, as a part of it; 0 and below: it is met."""
        gap = limit - value if self.quantity.most else value - limit
        return gap / limit if limit else gap

    def __str__(self) -> str:
        unit = f" {self.quantity.unit}" if self.quantity.unit and not self.relative else ""
        what = self.quantity.word if self.task is None else f"{self.quantity.word} of {self.task}"
        return f"{what} {'>=' if self.quantity.most else '<='} {self.bound:g}{'x' if self.relative else ''}{unit}"


def parse_constraint(quantity: Quantity, text: str, tolerance: float = 0.0) -> Constraint:
    """The value of the quantity's option; raises KnobError. `tolerance`: upper bounds grow by this part."""
    option = quantity.option
    match = _BOUND.fullmatch(text.strip())
    sign, example = (">=", ">=0.95x") if quantity.most else ("<=", "200 or 0.8x")
    task = match["task"] if match and match["task"] else None
    if match is None or match["sign"] not in (None, sign) or (task and not quantity.most):
        named = ", or of one task as in colour>=0.9" if quantity.most else ""
        raise KnobError(
            f"{option} takes a number, or a multiple of the full model's as in {example}{named}; got {text[:40]!r}."
        )
    bound, relative = float(match["number"]), bool(match["times"])
    if quantity.most and not relative and bound > 1:
        raise KnobError(f"{option} is a share from 0 to 1, or a multiple as in 0.95x; got {text[:40]!r}.")
    if not quantity.most:
        bound *= 1 + tolerance
    if not math.isfinite(bound) or bound <= 0:
        raise KnobError(f"{option} must be above 0, got {text[:40]!r}.")
    return Constraint(quantity, bound, relative, task)


def check_constraints(table: Table, constraints: Sequence[Constraint], at: str | None) -> None:
    """Refuse what no setting of the sweep could tell, and what is asked twice; raises KnobError."""
    seen = set()
    tasks = sorted({task for p in table.points if p.quality for task in p.quality.by_task})
    for constraint in constraints:
        key = (constraint.quantity.word, constraint.task)
        if key in seen:
            raise KnobError(f"each quantity is bounded once, {constraint} is a second bound. Leave one out.")
        seen.add(key)
        if constraint.task is not None and constraint.task not in tasks:
            raise KnobError(f"the sweep's tasks are {', '.join(tasks) or 'none'}, got {constraint.task[:40]!r}.")
        if all(constraint.value(point, at) is None for point in table.points):
            raise KnobError(
                f"no setting of this sweep has a measured {constraint.quantity.word}{f' at {at}' if at else ''}. "
                f"Leave {constraint.quantity.option} out, or run the sweep again with it."
            )


def choose_workload(table: Table, at: str | None) -> str | None:
    """The workload that times refer to: the one of `--at`, or the sweep's only one; None where it has none."""
    if at is not None and at not in table.workloads:
        raise KnobError(
            f"--at must be a workload of the sweep, {', '.join(table.workloads) or 'none'}; got {at[:40]!r}."
        )
    if at is None and len(table.workloads) > 1:
        raise KnobError(f"the sweep has several workloads, {', '.join(table.workloads)}: choose one with --at.")
    return at or next(iter(table.workloads), None)
