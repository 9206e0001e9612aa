"""A table by latency alone: the most accurate setting within a budget, for `--rule lookup` and for controllers.

The rule: among the settings whose latency is at most budget × (1 + tolerance) the most accurate one, the quickest of
equals; where there is none, the quickest of all, flagged as over the budget.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from export.sweep.constraints import ACCURACY, Quantity
from export.sweep.table import Point, Table
from transform.errors import KnobError
from transform.knobs import spelt_k

SCHEMA = 1
TOLERANCE = 0.05


@dataclass(frozen=True)
class Entry:
    """A setting of the table: right from budgets of `from_ms` on, up to the next entry's. `interval`, `samples`: of
    the accuracy."""

    from_ms: float
    latency_ms: float
    accuracy: float
    interval: tuple[float, float] | None
    samples: int
    name: str
    k: str
    blocks: int
    keep_blocks: tuple[int, ...]
    tokens: int | str | None
    form: str
    dtype: str


@dataclass(frozen=True)
class Lookup:
    """Entries by ascending latency and accuracy: a budget's setting is the last entry whose `from_ms` it reaches, below
    the first one's it is the first, over the budget. `latency`: which one (`latency` is a workload's total)."""

    workload: str
    latency: str
    tolerance: float
    entries: tuple[Entry, ...]

    def setting(self, budget_ms: float) -> tuple[Entry, bool]:
        """(the entry of a budget, whether it keeps to it)."""
        reached = [entry for entry in self.entries if entry.from_ms <= budget_ms]
        return (reached[-1], True) if reached else (self.entries[0], False)

    def text(self) -> str:
        """For a file."""
        facts: Mapping[str, object] = {"schema": SCHEMA, "unit": "ms", **asdict(self)}
        return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"


def make_lookup(table: Table, latency: Quantity, at: str | None, tolerance: float = TOLERANCE) -> Lookup:
    """The table of all settings whose accuracy and latency were measured; raises KnobError where there is none."""
    found: list[tuple[float, float, Point]] = []
    for point in table.points:
        time, accuracy = latency.read(point, at), ACCURACY.read(point, at)
        if time is not None and accuracy is not None:
            found.append((time, -accuracy, point))
    if not found or at is None:
        raise KnobError(
            "a look-up table needs settings with measured accuracy and latency, this sweep has none. Run it again with "
            "both."
        )
    entries: list[Entry] = []
    for time, minus, point in sorted(found, key=lambda one: (one[0], one[1], one[2].name)):
        if not entries or -minus > entries[-1].accuracy:
            entries.append(_entry(point, time, -minus, tolerance))
    return Lookup(at, latency.word, tolerance, tuple(entries))


def _entry(point: Point, time: float, accuracy: float, tolerance: float) -> Entry:
    quality = point.quality
    assert quality is not None
    return Entry(
        time / (1 + tolerance), time, accuracy, quality.total.interval, quality.total.samples, point.name,
        spelt_k(point.top_k), point.blocks, point.keep_blocks, point.tokens, point.form, point.dtype,
    )  # fmt: skip
