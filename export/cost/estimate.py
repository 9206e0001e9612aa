"""What a workload takes on a device, by arithmetic: an *estimate*, never a measurement.

Of each part the roofline, max(FLOPs / rate, bytes / bandwidth), and for each operator what calling one costs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from export.cost.count import STAGES, Counted
from export.cost.device import Device
from export.cost.part import Stage
from transform.forms import Form
from transform.strict_json import Record


@dataclass(frozen=True)
class Estimate:
    """`milliseconds` and `memory` (bytes) by stage, `total_ms` of the whole answer. `with_cut`: whether the picture's
    cutting is in; on a GPU the processor does it, and a data sheet doesn't say how fast."""

    device: str
    milliseconds: Mapping[str, float]
    memory: Mapping[str, int]
    total_ms: float
    with_cut: bool
    room: int  # bytes of the device

    @property
    def peak(self) -> int:
        """Bytes, of the stage that needs most."""
        return max(self.memory.values())

    def as_dict(self) -> Record:
        """For JSON."""
        stages = {
            name: {"milliseconds": round(self.milliseconds[name], 4), "bytes": self.memory[name]}
            for name in self.milliseconds
        }
        return {
            "estimate": True,
            "device": self.device,
            "stages": stages,
            "total_milliseconds": round(self.total_ms, 4),
            "peak_bytes": self.peak,
            "device_bytes": self.room,
            "fits": self.peak <= self.room,
            "with_cutting": self.with_cut,
        }


def estimate(counted: Counted, form: Form, device: Device) -> Estimate:
    """Raises KnobError where the device can't run the form, or doesn't say how fast."""
    rate = device.rate(form)
    seconds = {name: stage_seconds(counted.stage(name), rate, device) for name in STAGES if counted.stage(name)}
    beside = device.provider != "cpu"
    if counted.cut and beside:
        seconds["vision"] = stage_seconds(counted.vision, rate, device)
        if device.cut is not None:
            seconds["vision"] += sum(part.bytes for part in counted.cut) / device.cut
    runtime = round(device.runtime or 0)
    return Estimate(
        device.name,
        {name: value * 1e3 for name, value in seconds.items()},
        {name: size + runtime for name, size in counted.memory.items()},
        1e3 * (seconds.get("vision", 0.0) + seconds["prefill"] + counted.steps * seconds["decode"]),
        bool(counted.cut) and (not beside or device.cut is not None),
        round(device.memory),
    )


def stage_seconds(stage: Stage, rate: float, device: Device) -> float:
    """Of one call."""
    return sum(
        max(part.flops / rate, part.bytes / device.bandwidth) + part.operators * device.operator for part in stage
    )
