"""What a setting costs, by name: the axes of plots and columns of tables, with their units.

Which axes there are depends on the table: one without a single value isn't offered.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from export.sweep.table import Latency, Point, Table, Work

STEPS = {
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes")),
    "": ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"), (1, "")),
    "FLOP": ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1, "FLOP")),
    "ms": ((1, "ms"),),
    "tokens": ((1, "tokens"),),
}


@dataclass(frozen=True)
class Axis:
    """A cost of a point at a workload. `group`: the columns it stands with; `counted`: by arithmetic, not measured."""

    key: str
    label: str
    unit: str
    group: str
    of: Callable[[Point, str], float | None]
    counted: bool = False


@dataclass(frozen=True)
class Scale:
    """How values of an axis are shown: divided by `divide`, in `unit`."""

    divide: float
    unit: str

    def show(self, value: float | None) -> str:
        """Three significant digits, without the unit; a dash for what wasn't measured."""
        return "–" if value is None else significant(value / self.divide)


def _latency(read: Callable[[Latency], float | None]) -> Callable[[Point, str], float | None]:
    return lambda point, at: read(point.latency[at]) if at in point.latency else None


def _work(read: Callable[[Work], float]) -> Callable[[Point, str], float | None]:
    return lambda point, at: read(point.cost.work[at]) if at in point.cost.work else None


AXES = (
    Axis("total_ms", "total latency", "ms", "latency", _latency(lambda one: one.total_ms)),
    Axis("vision_ms", "vision latency", "ms", "stages", _latency(lambda one: one.vision_ms)),
    Axis("prefill_ms", "prefill latency", "ms", "stages", _latency(lambda one: one.prefill_ms)),
    Axis("decode_ms", "latency per decoded token", "ms", "stages", _latency(lambda one: one.decode_ms)),
    Axis("peak_bytes", "peak memory", "B", "memory", _latency(lambda one: one.peak_bytes)),
    Axis("bytes", "weight bytes", "B", "memory", lambda point, _: point.cost.bytes, counted=True),
    Axis("kv_bytes", "cache", "B", "memory", _work(lambda one: one.kv_bytes), counted=True),
    Axis("parameters", "parameters", "", "memory", lambda point, _: point.cost.parameters, counted=True),
    Axis("active", "active parameters", "", "memory", lambda point, _: point.cost.active_parameters, counted=True),
    Axis("features", "image features", "tokens", "work", _work(lambda one: one.vision_tokens), counted=True),
    Axis("positions", "prompt positions", "tokens", "work", _work(lambda one: one.positions), counted=True),
    Axis("vision_flops", "vision FLOPs", "FLOP", "work", _work(lambda one: one.vision_flops), counted=True),
    Axis("prefill_flops", "prefill FLOPs", "FLOP", "work", _work(lambda one: one.prefill_flops), counted=True),
    Axis("decode_flops", "FLOPs of a decoded token", "FLOP", "work", _work(lambda one: one.decode_flops), counted=True),
)
FRONTS = ("total_ms", "prefill_ms", "decode_ms", "peak_bytes", "bytes", "parameters", "active")
DRAWN = FRONTS[:5]  # as files too: the others have the shapes of these


def offered(table: Table) -> tuple[Axis, ...]:
    """The axes on which some point has a value above 0."""
    return tuple(axis for axis in AXES if any(axis.of(point, at) for point in table.points for at in table.workloads))


def scale(axis: Axis, values: Iterable[float | None]) -> Scale:
    """The unit in which the largest value has one to three digits in front of the point, where there is such a unit."""
    most = max((value for value in values if value is not None), default=0.0)
    steps: Sequence[tuple[float, str]] = STEPS[axis.unit]
    return Scale(*next((step for step in steps if most >= step[0]), steps[-1]))


def scales(table: Table, axes: Iterable[Axis]) -> dict[str, Scale]:
    """One scale per axis, for all workloads."""
    return {
        axis.key: scale(axis, (axis.of(point, at) for point in table.points for at in table.workloads)) for axis in axes
    }


def significant(value: float) -> str:
    """Three significant digits, never an exponent: 1,234; 123; 12.3; 0.0123."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):.{3 - 1 - _exponent(value)}f}"


def _exponent(value: float) -> int:
    return int(f"{value:.2e}".partition("e")[2])


def percent(share: float) -> str:
    """`88.9 %`, never broken before the sign."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"
