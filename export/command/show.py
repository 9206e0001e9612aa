"""What people see: the plan as a table, progress while it is carried out, the result."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from export.files.verification import Verification
from transform.knobs import spelt_k
from transform.plan import Plan
from transform.progress import Progress, Say
from transform.strict_json import Record

_MANY_TILINGS = 8


def show_plan(plan: Plan, console: Console) -> None:
    """Blocks, k, tokens nominal and real, parameters total and active, bytes; warnings last."""
    facts = plan.as_dict()
    source = facts["source"]
    removed = " ".join(map(str, facts["blocks_removed"])) or "none"
    rows = [
        ("drop blocks", f"{removed}   ({len(facts['blocks_removed'])} of {source['blocks']})"),
        ("router top-k", f"{spelt_k(source['top_k'])} -> {spelt_k(facts['top_k'])}"),
        ("parameters", f"{source['parameters']:,} -> {facts['parameters']:,}"),
        ("active per token", f"{source['active_parameters']:,} -> {facts['active_parameters']:,}"),
        ("weight bytes", f"{source['bytes']:,} -> {facts['bytes']:,}   ({_stored(plan)})"),
    ]
    if facts["vision"]:
        rows += _vision_rows(facts["vision"])
    table = Table(title=escape(facts["name"]), show_header=False, box=None, title_justify="left", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for warning in facts["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)


def _stored(plan: Plan) -> str:
    if plan.packing:
        return f"{plan.packing[0]}-bit codes and scales"
    return f"{plan.dtype} dtype"


def _vision_rows(vision: Record) -> list[tuple[str, str]]:
    tilings = vision["tilings"]
    if vision["tokens"] is None or len(tilings) > _MANY_TILINGS:
        least = min(tilings, key=lambda t: t["image_tokens"])
        most = max(tilings, key=lambda t: t["image_tokens"])
        name = "stock tiling" if vision["tokens"] is None else f"tier {vision['tokens']}"
        real = f"{least['image_tokens']} to {most['image_tokens']}"
        return [("vision tokens", f"{name}, at most {vision['max_crops']} crops: {real} in the sequence")]
    rows = [("vision tokens", f"{vision['tokens']} nominal, by tiling:")]
    for t in tilings:
        real = f"{t['patch_tokens']} image patches, {t['image_tokens']} in the sequence"
        rows.append(("", f"{t['rows']}×{t['columns']}: {real}"))
    return rows


@contextmanager
def progress_bars(console: Console, total: int | None) -> Iterator[tuple[Say, Progress]]:
    """(say, advance): a bar of bytes with the current step's name; plain lines where no terminal watches."""
    with _bar(console, total, DownloadColumn()) as pair:
        yield pair


@contextmanager
def sample_bar(console: Console, total: int) -> Iterator[tuple[Say, Progress]]:
    """(say, advance): the same with a count of samples; where no terminal watches, a line for every tenth."""
    done = 0
    with _bar(console, total, MofNCompleteColumn()) as (say, advance):

        def count(more: int) -> None:
            nonlocal done
            before, done = done, done + more
            advance(more)
            if not console.is_terminal and before * 10 // total < done * 10 // total:
                console.print(f"… {done} of {total} samples", style="dim")

        yield say, count


@contextmanager
def turn_bar(console: Console, total: int) -> Iterator[tuple[Say, Progress]]:
    """(say, advance): the same with a count of turns that are timed."""
    # redrawn seldom: the bar's own thread would take time from what is measured
    with _bar(console, total, MofNCompleteColumn(), refreshed=1) as bar:
        yield bar


@contextmanager
def _bar(
    console: Console, total: int | None, amount: ProgressColumn, refreshed: float = 10
) -> Iterator[tuple[Say, Progress]]:
    columns = (TextColumn("{task.description:24}"), BarColumn(), amount, TimeRemainingColumn())
    with Bars(
        *columns, console=console, transient=True, disable=not console.is_terminal, refresh_per_second=refreshed
    ) as progress:
        task = progress.add_task("", total=total)

        def say(step: str) -> None:
            progress.update(task, description=step)
            if not console.is_terminal:
                console.print(f"… {step}", style="dim")

        yield say, lambda count: progress.advance(task, count)


def show_result(manifest: Record, target: Path, console: Console) -> None:
    """Where the variant is and what the gate measured."""
    checked = Verification.parse(manifest["verification"])
    if checked is None:
        console.print(f"[yellow]not verified[/yellow] {escape(str(target))}", soft_wrap=True)
        return
    console.print(f"[green]verified[/green] {escape(str(target))}", soft_wrap=True)
    for group in ("static_vs_dynamic", "onnx_vs_torch"):
        if values := checked.differences(group):
            console.print(f"  {group.replace('_', ' ')}: largest difference {max(values.values()):.3g}", style="dim")


def show_evaluation(found: Record, console: Console) -> None:
    """Accuracy with its 95 % interval, per kind and in all."""
    from importance.tasks import wilson

    table = Table(box=None, pad_edge=False)
    table.add_column("kind")
    for name in ("accuracy", "95 % interval", "samples"):
        table.add_column(name, justify="right")
    for kind, share in (*found["by_kind"].items(), ("all", found)):
        low, high = wilson(share["accuracy"], share["samples"])
        table.add_row(escape(kind), f"{share['accuracy']:.1%}", f"{low:.1%} to {high:.1%}", f"{share['samples']:,}")
    console.print(table)
