"""`knobcast calibrate`: measured latencies of this machine -> a device file that `plan --device` takes."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from export.command.options import Json
from export.command.output import Console, print_json
from transform.errors import KnobError, WriteError

if TYPE_CHECKING:
    from export.cost.calibrate import Calibration, Errors

POINTS = 8


def calibrate(
    device: Annotated[Path, typer.Argument(help="The device file to write, DEVICE.toml.")],
    measured: Annotated[
        list[Path] | None,
        typer.Option("--from", help="A sweep's directory, or a record of bench (.json); repeat it for several."),
    ] = None,
    points: Annotated[
        int, typer.Option("--points", min=2, help="Fit to so many settings, the others check it.")
    ] = POINTS,
    model: Annotated[
        str | None, typer.Option("--model", help="The swept model; absent: where the sweep had it.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the device; absent: as the measurements have it.")
    ] = None,
    memory_gb: Annotated[
        float | None, typer.Option("--memory-gb", min=0, help="Of the device; absent: this machine's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Fit a device's numbers to what was measured on it."""
    from export.command.work import check_writable
    from export.cost.calibrate import calibrate as fit
    from export.cost.device import parse_device
    from export.sweep.timings import read_timings
    from importance.atomic import write_atomically

    if device.suffix != ".toml":
        raise KnobError(f"a device file is called NAME.toml, got {device.name[:60]!r}. Choose such a name.")
    if not measured:
        raise KnobError("a device is fitted to measurements, none are given. Give a sweep or bench records by --from.")
    check_writable(device)
    if device.exists() and not force:
        raise WriteError(f"{device} exists; pass --force or choose another name.")
    timings = read_timings(measured, model)
    said = f"{timings.machine}, threads: {timings.threads}" if timings.provider == "cpu" else timings.machine
    own = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    memory = own if memory_gb is None else memory_gb * 1e9
    found = fit(timings.points, points, said if name is None else name, timings.provider, memory)
    text = found.device.text()
    parse_device(text.encode(), device.name)  # what was said of it too
    write_atomically(device, text, force)
    if as_json:
        unseen = found.unseen.as_dict() if found.unseen else None
        print_json({
            "device": found.device.name, "used": list(found.used), "used_errors": found.seen.as_dict(),
            "unseen_errors": unseen, "all_errors": found.every.as_dict(), "out": str(device),
        })  # fmt: skip
    else:
        _show(found, device, Console(highlight=False))


def _show(found: "Calibration", path: Path, console: Console) -> None:
    device = found.device
    rates = ", ".join(f"{_limit(rate, 'GFLOP/s')} ({kind})" for kind, rate in device.rates.items())
    moved, called = f"{_limit(device.bandwidth, 'GB/s')}", f"{device.operator * 1e6:.3g} µs an operator"
    console.print(f"{escape(device.name)}: {rates}, {moved}, {called}", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("settings", "", "median error", "largest", "rank correlation", "error of memory"):
        table.add_column(column, justify="right" if column else "left")
    for label, errors in (("fitted to", found.seen), ("not seen", found.unseen), ("all", found.every)):
        if errors is not None:
            table.add_row(*_row(label, errors))
    console.print(table)
    console.print(f"[green]written[/green] {escape(str(path))}", soft_wrap=True)


def _limit(rate: float, unit: str) -> str:
    from export.cost.fit import NO_LIMIT

    return f"no limit of {unit} seen" if rate >= NO_LIMIT else f"{rate / 1e9:,.3g} {unit}"


def _row(label: str, errors: "Errors") -> tuple[str, ...]:
    rank = "" if errors.rank is None else f"{errors.rank:.3f}"
    memory = "" if errors.memory is None else f"{errors.memory:.1%}"
    return str(errors.settings), label, f"{errors.median:.1%}", f"{errors.worst:.1%}", rank, memory
