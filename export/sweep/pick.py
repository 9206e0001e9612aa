"""The best setting of a sweep within constraints, and up to three that differ; or what comes closest.

What is optimised: accuracy. Where accuracy is bounded and no time is, the user said what is enough of it: then the
time of the workload. Ties go to the more accurate, quicker, smaller setting, then to the first by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from export.sweep.constraints import ACCURACY, BYTES, LATENCY, MEMORY, TIMES, Constraint, Quantity
from export.sweep.table import Point, Table
from transform.errors import KnobError

RUNNERS_UP = 3
NOTICEABLE = 0.05  # of a time or a size: below it, runs of the same setting differ
_RANKED = (ACCURACY, LATENCY, BYTES)


@dataclass(frozen=True)
class Failed:
    """A constraint that a setting misses: its value, the limit, and by which part of it."""

    constraint: Constraint
    value: float
    limit: float
    excess: float


@dataclass(frozen=True)
class Pick:
    """`best` None: nothing fits, and `closest` misses `failed`. `unmeasured`: settings that lack a value which was
    asked for, and so were left out; `fitting`: how many meet all."""

    optimised: Quantity
    at: str | None
    best: Point | None
    runners_up: tuple[Point, ...]
    fitting: int
    unmeasured: tuple[str, ...]
    closest: Point | None = None
    failed: tuple[Failed, ...] = ()


def optimised_by(constraints: Sequence[Constraint]) -> Quantity:
    """What is optimised where nobody says it."""
    bounded = {constraint.quantity.word for constraint in constraints}
    return LATENCY if ACCURACY.word in bounded and not bounded & {time.word for time in TIMES} else ACCURACY


def pick(table: Table, constraints: Sequence[Constraint], at: str | None, optimise: Quantity | None = None) -> Pick:
    """Choose among the settings of which everything needed was measured; raises KnobError where there is none."""
    optimised = optimise or _measured_one(table, optimised_by(constraints), at)
    limits = [constraint.limit(table, at) for constraint in constraints]
    known: list[Point] = []
    unmeasured: list[Point] = []
    for point in table.points:
        values = [optimised.read(point, at), *(constraint.value(point, at) for constraint in constraints)]
        (unmeasured if None in values else known).append(point)
    if not known:
        raise KnobError(
            f"no setting of this sweep has all that is asked for ({optimised.word}"
            f"{''.join(f', {c.quantity.word}' for c in constraints)}). Run the sweep again, which does what is missing."
        )
    names = tuple(point.name for point in unmeasured)
    fitting = [point for point in known if not _failed(point, constraints, limits, at)]
    if not fitting:
        closest = min(known, key=lambda point: (_worst(point, constraints, limits, at), _rank(point, optimised, at)))
        failed = _failed(closest, constraints, limits, at)
        return Pick(optimised, at, None, (), 0, names, closest, failed)
    ranked = sorted(fitting, key=lambda point: _rank(point, optimised, at))
    return Pick(optimised, at, ranked[0], _runners_up(ranked, at), len(fitting), names)


def _measured_one(table: Table, wanted: Quantity, at: str | None) -> Quantity:
    """The wanted quantity, or where no setting has it the next one that some have: without times, bytes tell."""
    for quantity in (wanted, ACCURACY, LATENCY, BYTES):
        if any(quantity.read(point, at) is not None for point in table.points):
            return quantity
    return BYTES


def _rank(point: Point, optimised: Quantity, at: str | None) -> tuple[float | str, ...]:
    """Less is better."""
    order = (optimised, *(quantity for quantity in _RANKED if quantity is not optimised))
    values = ((quantity.read(point, at), quantity.most) for quantity in order)
    return (*(float("inf") if v is None else -v if most else v for v, most in values), point.name)


def _failed(
    point: Point, constraints: Sequence[Constraint], limits: Sequence[float], at: str | None
) -> tuple[Failed, ...]:
    found = []
    for constraint, limit in zip(constraints, limits, strict=True):
        value = constraint.value(point, at)
        if value is not None and (excess := constraint.excess(value, limit)) > 0:
            found.append(Failed(constraint, value, limit, excess))
    return tuple(found)


def _worst(point: Point, constraints: Sequence[Constraint], limits: Sequence[float], at: str | None) -> float:
    return max(failed.excess for failed in _failed(point, constraints, limits, at))


def _runners_up(ranked: Sequence[Point], at: str | None) -> tuple[Point, ...]:
    """The next ones that someone could prefer to each before it: more accurate, or noticeably quicker or smaller."""
    chosen = [ranked[0]]
    for point in ranked[1:]:
        if len(chosen) > RUNNERS_UP:
            break
        if all(_preferable(point, other, at) for other in chosen):
            chosen.append(point)
    return tuple(chosen[1:])


def _preferable(point: Point, other: Point, at: str | None) -> bool:
    for quantity in (ACCURACY, LATENCY, MEMORY, BYTES):
        ours, theirs = quantity.read(point, at), quantity.read(other, at)
        if ours is not None and theirs is not None:
            if quantity.most and ours > theirs:
                return True
            if not quantity.most and ours < theirs * (1 - NOTICEABLE):
                return True
    return False
