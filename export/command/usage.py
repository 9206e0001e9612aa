"""`--device` and `--workload`: what a planned variant would take in use, marked as the estimate it is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from transform.errors import KnobError
from transform.strict_json import Record

if TYPE_CHECKING:
    from export.cost.count import Counted
    from export.cost.estimate import Estimate
    from export.cost.work import Workload
    from transform.plan import Plan

ALONE = "32:8"  # a workload without a picture


@dataclass(frozen=True)
class Usage:
    """A device, and what it is asked there."""

    device: Annotated[
        str | None, typer.Option("--device", help="Estimate time and memory there: a name, or a file DEVICE.toml.")
    ] = None
    workload: Annotated[
        str | None,
        typer.Option(
            "--workload",
            help="With --device: WIDTHxHEIGHT:PROMPT:NEW, a picture, tokens of text and of answer; or PROMPT:NEW.",
            show_default="640x480:32:8",
        ),
    ] = None

    def estimate(self, plan: "Plan") -> "Expected | None":
        """None where no device is named; raises KnobError."""
        if self.device is None:
            if self.workload is not None:
                raise KnobError(
                    "--workload is what a device is asked to do, and none is named. Give --device, or leave it out."
                )
            return None
        from export.cost.count import count
        from export.cost.device import find_device
        from export.cost.estimate import estimate
        from export.cost.work import EXAMPLE, parse_workload

        usual = ALONE if plan.vision is None else EXAMPLE
        workload = parse_workload(usual if self.workload is None else self.workload)
        device = find_device(self.device)
        counted = count(plan, workload)
        return Expected(workload, counted, estimate(counted, plan.form, device))


@dataclass(frozen=True)
class Expected:
    """A workload, what it takes by arithmetic, and how long that is about."""

    workload: "Workload"
    counted: "Counted"
    estimate: "Estimate"

    def as_dict(self) -> Record:
        """For `--json`."""
        work, image = self.counted.work, self.workload.image
        said = self.estimate.as_dict()
        stages = {name: {**each, **self._counts(name)} for name, each in said["stages"].items()}
        return {
            **said,
            "stages": stages,
            "workload": {
                "image": None if image is None else list(image),
                "prompt": self.workload.prompt,
                "new": self.workload.new,
            },
            "work": vars(work),
        }

    def _counts(self, name: str) -> dict[str, int]:
        """Of the stage as it was estimated."""
        from export.cost.part import flops

        without = name == "vision" and not self.estimate.with_cut
        stage = self.counted.vision if without else self.counted.stage(name)
        return {"flops": flops(stage), "traffic_bytes": round(sum(part.bytes for part in stage))}

    def show(self, console: Console) -> None:
        """A row per stage."""
        found, image = self.estimate, self.workload.image
        asked = f"{self.workload.prompt} tokens of text, {self.workload.new} of answer"
        if image is not None:
            asked = f"a picture of {image[0]}×{image[1]}, {asked}"
        positions = f"{self.counted.tokens.positions} positions in all"
        console.print(f"\nestimate for {escape(found.device)}: {asked}, {positions}", soft_wrap=True)
        table = Table(box=None, pad_edge=False)
        table.add_column("stage")
        for column in ("estimated ms", "estimated MB", "GFLOP", "MB moved"):
            table.add_column(column, justify="right")
        for name, spent in found.milliseconds.items():
            counts = self._counts(name)
            label = "decode, per token" if name == "decode" else name
            cells = (
                f"{spent:,.2f}",
                _mega(found.memory[name]),
                f"{counts['flops'] / 1e9:,.3f}",
                _mega(counts["traffic_bytes"]),
            )
            table.add_row(label, *cells)
        room = "" if found.peak <= found.room else f" of {_mega(found.room)}: too much"
        table.add_row("all", f"{found.total_ms:,.2f}", f"{_mega(found.peak)}{room}")
        console.print(table)
        if self.counted.cut and not found.with_cut:
            console.print("without the time that cutting the picture takes on the processor", style="dim")


def _mega(size: float) -> str:
    return f"{size / 1e6:,.1f}"
