"""Measured settings of one machine -> the device that predicts them best, and how well it predicts those it didn't see.

A few settings are enough, if they differ: they are chosen by how far apart their work lies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from export.cost.count import STAGES, Counted
from export.cost.device import Device
from export.cost.estimate import estimate
from export.cost.fit import NO_LIMIT, Fitted, Timed, fit
from export.cost.part import flops
from importance.statistics import spearman
from transform.arrays import Array
from transform.errors import KnobError
from transform.forms import Form
from transform.strict_json import Record


@dataclass(frozen=True)
class Measured:
    """A setting under a workload. `seconds`: medians by stage, of one step for `decode`; `peak`: bytes of the process,
    None: not measured."""

    name: str
    counted: Counted
    form: Form
    seconds: Mapping[str, float]
    peak: int | None = None

    @property
    def total(self) -> float:
        """Seconds of the whole answer."""
        return self.seconds.get("vision", 0.0) + self.seconds["prefill"] + self.counted.steps * self.seconds["decode"]


@dataclass(frozen=True)
class Errors:
    """Relative errors of predicted totals and the rank correlation with what was measured, None with fewer than three
    settings; `stages`: median errors by stage; `memory`: of the peak, None where none was measured."""

    settings: int
    median: float
    worst: float
    rank: float | None
    stages: Mapping[str, float]
    memory: float | None

    def as_dict(self) -> Record:
        """For JSON."""
        return {
            "settings": self.settings,
            "median_error": round(self.median, 4),
            "worst_error": round(self.worst, 4),
            "rank_correlation": None if self.rank is None else round(self.rank, 4),
            "median_error_by_stage": {name: round(error, 4) for name, error in self.stages.items()},
            "median_error_of_memory": None if self.memory is None else round(self.memory, 4),
        }


@dataclass(frozen=True)
class Calibration:
    """The device; `used`: the settings it was fitted to; errors over these, over all others (None: there are none) and
    over all."""

    device: Device
    used: tuple[str, ...]
    seen: Errors
    unseen: Errors | None
    every: Errors


def calibrate(points: Sequence[Measured], count: int, name: str, provider: str, memory: float) -> Calibration:
    """Fit `count` of the points, all if there are fewer; raises KnobError where they are too few or too much alike.

    memory: bytes of the machine, which no latency tells.
    """
    instant = [point.name for point in points if min(point.seconds.values()) <= 0]
    if instant:
        raise KnobError(f"a measured time must be above 0, {instant[0]} has one that isn't. Measure it again.")
    used = spread(points, count)
    timed = [_timed(point, stage, provider) for point in used for stage in STAGES if stage in point.seconds]
    fitted = fit(timed)
    over = [p.peak - max(p.counted.memory.values()) for p in used if p.peak is not None]
    runtime = float(np.median(over)) if over else 0.0
    said = f"fitted to {len(used)} measured settings"
    device = Device(
        name,
        provider,
        memory,
        fitted.bandwidth,
        fitted.operator,
        fitted.rates,
        runtime if runtime > 0 else None,
        fitted.cut,
        _sources(fitted, said, runtime > 0),
    )
    others = [point for point in points if point not in used]
    return Calibration(
        device,
        tuple(point.name for point in used),
        errors(used, device),
        errors(others, device) if others else None,
        errors(points, device),
    )


def errors(points: Sequence[Measured], device: Device) -> Errors:
    """How far the device's estimates are from what was measured."""
    made = [estimate(point.counted, point.form, device) for point in points]
    measured = np.array([point.total for point in points])
    predicted = np.array([each.total_ms / 1e3 for each in made])
    off = np.abs(predicted / measured - 1)
    stages, both = {}, list(zip(made, points, strict=True))
    for name in STAGES:
        took = [(e.milliseconds[name] / 1e3, p.seconds[name]) for e, p in both if name in p.seconds]
        if took:
            stages[name] = float(np.median([abs(ours / theirs - 1) for ours, theirs in took]))
    rank = _rank(predicted, measured)
    peaks = [abs(e.peak / p.peak - 1) for e, p in both if p.peak is not None]
    memory = float(np.median(peaks)) if peaks else None
    return Errors(len(points), float(np.median(off)), float(off.max()), rank, stages, memory)


def spread(points: Sequence[Measured], count: int) -> list[Measured]:
    """`count` points that lie far apart: the largest, then always the one whose nearest chosen one is farthest."""
    if not points:
        raise KnobError("a device is fitted to measured settings, there are none. Measure some first.")
    places = np.array([[np.log(1 + value) for value in _place(point)] for point in points])
    scale = places.std(axis=0)
    places = places / np.where(scale > 0, scale, 1)
    chosen = [int(np.argmax([point.total for point in points]))]
    while len(chosen) < min(count, len(points)):
        nearest = np.linalg.norm(places[:, None] - places[chosen][None], axis=2).min(axis=1)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return [points[n] for n in sorted(chosen)]


def _rank(ours: Array, theirs: Array) -> float | None:
    """Spearman's rank correlation; None where there is nothing to rank."""
    if len(ours) < 3 or min(np.ptp(ours), np.ptp(theirs)) == 0:
        return None
    return spearman(ours, theirs)


def _place(point: Measured) -> list[float]:
    found: list[float] = []
    for name in STAGES:
        stage = point.counted.stage(name)
        found += [flops(stage), sum(p.bytes for p in stage), sum(p.operators for p in stage)]
    return [*found, float(point.form.bits or 0)]


def _timed(point: Measured, stage: str, provider: str) -> Timed:
    kind = f"int{point.form.bits}" if point.form.bits else point.form.compute
    if stage == "vision" and provider != "cpu":
        beside = float(sum(part.bytes for part in point.counted.cut))
        return Timed(point.counted.vision, kind, point.seconds[stage], beside)
    return Timed(point.counted.stage(stage), kind, point.seconds[stage])


def _sources(fitted: Fitted, said: str, runtime: bool) -> dict[str, str]:
    def of(value: float) -> str:
        return f"{said}, which show no limit" if value >= NO_LIMIT else said

    found = {"memory_gb": "the machine's memory", "bandwidth_gb_s": of(fitted.bandwidth), "operator_us": said}
    found |= {f"tflops.{kind}": of(rate) for kind, rate in fitted.rates.items()}
    if runtime:
        found["runtime_mb"] = f"{said}: peak of the process less what was counted, the median"
    if fitted.cut is not None:
        found["cut_gb_s"] = of(fitted.cut)
    return found
