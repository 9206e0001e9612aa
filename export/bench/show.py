"""The measurements as a table: a column per contestant, a row per quantity; who could not run, and why."""

from collections.abc import Callable, Mapping
from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export.bench.record import BenchRecord, ContestantRecord

MB = 1e6


def show_bench(found: BenchRecord, console: Console) -> None:
    """Print all of it."""
    work, machine = found["workload"], found["machine"]
    measured = [r for r in found["contestants"] if r["status"] == "measured"]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for record in measured:
        table.add_column(record["name"], justify="right")
    for label, cell in _rows(found):
        cells = [cell(record) for record in measured]
        if any(cells):
            table.add_row(label, *(text or "–" for text in cells))
    if measured:
        console.print(table)
        _say_tokens(found, console)
    for record in found["contestants"]:
        if record["status"] != "measured":
            console.print(
                f"[yellow]{record['status']}[/yellow] {record['name']}: {escape(str(record['reason']))}", soft_wrap=True
            )
    if cut := found["preprocess"]:
        by = "preprocess.onnx" if cut["by"] == "graph" else "the Python code"
        console.print(f"cutting the picture, by {by}: {_number(cut['seconds']['median'])} s, in no row", style="dim")
    picture = f"{work['image_tokens']} image tokens of {work['crops']} crops among them, " if work["crops"] else ""
    rounded = f", {found['activations']} activations" if found["activations"] else ""
    console.print(
        f"{found['form']} form{rounded}; batch 1, {work['prompt_tokens']} prompt tokens, {picture}{work['new_tokens']} "
        f"new ones in {work['steps']} steps; medians of {found['runs']} runs in turn, after "
        f"{found['warmup']} to warm up",
        style="dim", soft_wrap=True,
    )  # fmt: skip
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    console.print(
        f"{escape(machine['cpu'])}{escape(gpu)}, threads: {machine['threads']}, load {machine['load']} before, "
        f"{versions}",
        style="dim", soft_wrap=True,
    )  # fmt: skip


def show_contestants(names: Mapping[str, str | None], what: Mapping[str, str], console: Console) -> None:
    """Who would be measured, before anything is."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, reason in names.items():
        state = "[green]available[/green]" if reason is None else f"[yellow]unavailable[/yellow] {escape(reason)}"
        table.add_row(name, what[name], state)
    console.print(table)


def _rows(found: BenchRecord) -> list[tuple[str, Callable[[ContestantRecord], str]]]:
    base = found["baseline"]
    rows: list[tuple[str, Callable[[ContestantRecord], str]]] = [
        ("load, s", lambda r: _number(r["load_seconds"])),
        ("picture, s", lambda r: _number(r["vision_seconds"]["median"] if r["vision_seconds"] else None)),
        ("prefill, s", lambda r: _number(r["prefill_seconds"]["median"])),
        ("step p50, ms", lambda r: _number(1e3 * r["step_seconds"]["p50"])),
        ("step p95, ms", lambda r: _number(1e3 * r["step_seconds"]["p95"])),
        ("step mean, ms", lambda r: _number(1e3 * r["step_seconds"]["mean"])),
        ("tokens/s", lambda r: _number(r["tokens_per_second"])),
    ]
    for part in ("vision", "prefill", "step"):
        rows.append((f"{'picture' if part == 'vision' else part} / {base}'s", partial(_ratio, part)))
    return [
        *rows,
        ("peak memory, MB", lambda r: _memory(r["memory"]["peak_bytes"])),
        ("anonymous after load, MB", lambda r: _memory(r["memory"]["anonymous_bytes_at_load"])),
        ("  before it, MB", lambda r: _memory(r["memory"]["anonymous_bytes_before_load"])),
        ("on the device, MB", lambda r: _memory(r["memory"]["device_bytes"])),
    ]


def _ratio(part: str, record: ContestantRecord) -> str:
    return _number(record.get("ratios", {}).get(part))


def _memory(value: int | None) -> str:
    return "" if value is None else f"{value / MB:,.0f}"


def _say_tokens(found: BenchRecord, console: Console) -> None:
    if found["tokens_equal"] is None:
        return
    parted = [
        f"{r['name']}: first difference at step {r['first_difference']}"
        for r in found["contestants"]
        if r["status"] == "measured" and r["first_difference"] is not None
    ]
    parted += [
        f"{r['name']}: not the same in every run"
        for r in found["contestants"]
        if r["status"] == "measured" and not r["repeatable"]
    ]
    answer = "[green]yes[/green]" if found["tokens_equal"] else f"[yellow]no[/yellow] ({'; '.join(parted)})"
    console.print(f"tokens equal: {answer}", soft_wrap=True)


def _number(value: float | None) -> str:
    """Three figures."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")
