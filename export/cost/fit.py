"""Measured stages -> a device's numbers: relative least squares over the roofline's terms, none of them below zero.

Whether a part waits for its products or for its bytes depends on the numbers that are sought, so every ridge (FLOPs per
byte, above which products count) of a grid is tried, and the one whose prediction is nearest to what was measured wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from export.cost.part import Stage
from transform.arrays import Array
from transform.errors import KnobError

RIDGES = tuple(2.0**n for n in range(-6, 11))
SLOWEST = 1e-30  # what a term costs at least, so that rates stay finite: 10^18 FLOP a second are "no limit was seen"
NO_LIMIT = 1e18


@dataclass(frozen=True)
class Timed:
    """A stage, the type that its rate is of, what it took in seconds, and bytes that a processor beside it moved."""

    stage: Stage
    kind: str
    seconds: float
    cut_bytes: float = 0.0


@dataclass(frozen=True)
class Fitted:
    """FLOP a second by type, bytes a second, seconds per operator; `cut`: bytes a second of cutting, None without."""

    rates: dict[str, float]
    bandwidth: float
    operator: float
    cut: float | None

    def seconds(self, timed: Timed) -> float:
        """What the roofline predicts."""
        rate = self.rates[timed.kind]
        beside = timed.cut_bytes / self.cut if self.cut else 0.0
        return beside + sum(
            max(part.flops / rate, part.bytes / self.bandwidth) + part.operators * self.operator for part in timed.stage
        )


def fit(points: Sequence[Timed]) -> Fitted:
    """Raises KnobError where there are fewer stages than numbers to find."""
    kinds = list(dict.fromkeys(point.kind for point in points))
    cutting = any(point.cut_bytes for point in points)
    unknowns = len(kinds) + 2 + int(cutting)
    if len(points) < unknowns:
        raise KnobError(
            f"{unknowns} numbers are fitted and need as many measured stages, got {len(points)}. Give more points."
        )
    found: tuple[float, Fitted] | None = None
    for ridge in RIDGES:
        made = _at_ridge(points, kinds, cutting, ridge)
        loss = float(np.mean([(made.seconds(point) / point.seconds - 1) ** 2 for point in points]))
        if found is None or loss < found[0]:
            found = loss, made
    assert found is not None
    return found[1]


def _at_ridge(points: Sequence[Timed], kinds: Sequence[str], cutting: bool, ridge: float) -> Fitted:
    """The best numbers if parts above `ridge` FLOPs per byte wait for products, the others for bytes."""
    rows = []
    for point in points:
        products = [part.flops for part in point.stage if part.flops > ridge * part.bytes]
        moved = [part.bytes for part in point.stage if part.flops <= ridge * part.bytes]
        called = sum(part.operators for part in point.stage)
        by_kind = [float(sum(products)) if kind == point.kind else 0.0 for kind in kinds]
        rows.append([*by_kind, float(sum(moved)), called, *([point.cut_bytes] if cutting else [])])
    matrix = np.array(rows) / np.array([[point.seconds] for point in points])
    costs = nonnegative(matrix, np.ones(len(points)))
    rates = [1 / cost if cost > SLOWEST else NO_LIMIT for cost in costs]
    count = len(kinds)
    cut = rates[count + 2] if cutting else None
    return Fitted(dict(zip(kinds, rates[:count], strict=True)), rates[count], float(costs[count + 1]), cut)


def nonnegative(matrix: Array, target: Array) -> Array:
    """argmin |matrix x - target| over x >= 0 for a few columns: the best of all their subsets whose solution is."""
    columns = matrix.shape[1]
    scale = np.abs(matrix).max(axis=0)
    scale[scale == 0] = 1
    best, loss = np.zeros(columns), float(target @ target)
    for size in range(1, columns + 1):
        for chosen in combinations(range(columns), size):
            part = matrix[:, chosen] / scale[list(chosen)]
            solved = np.linalg.lstsq(part, target, rcond=None)[0]
            miss = part @ solved - target
            if (solved >= 0).all() and float(miss @ miss) < loss - 1e-15:
                best = np.zeros(columns)
                best[list(chosen)] = solved / scale[list(chosen)]
                loss = float(miss @ miss)
    return best
