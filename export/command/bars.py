"""Progress as people see it: a bar on a terminal, plain lines elsewhere, nothing under --quiet."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from transform.progress import Progress, Say


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
    shown = console.is_terminal and not console.quiet
    with Bars(*columns, console=console, transient=True, disable=not shown, refresh_per_second=refreshed) as progress:
        task = progress.add_task("", total=total)

        def say(step: str) -> None:
            progress.update(task, description=step)
            if not console.is_terminal:
                console.print(f"… {step}", style="dim")

        yield say, lambda count: progress.advance(task, count)


@contextmanager
def sweep_bars(console: Console, samples: int, decoders: int) -> Iterator[tuple[Say, Progress, Progress]]:
    """(say, samples done, decoders done): a bar each; where no terminal watches, a line for every tenth of the samples
    and for each step."""
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = console.is_terminal and not console.quiet
    # redrawn seldom: the bars' own thread would take time from what is measured
    with Bars(*columns, console=console, transient=True, disable=not shown, refresh_per_second=1) as progress:
        asked = progress.add_task("answers", total=samples, visible=samples > 0)
        timed = progress.add_task("decoders", total=decoders, visible=decoders > 0)
        done = 0

        def say(step: str) -> None:
            progress.update(timed if step.startswith("time") else asked, description=step)
            if not console.is_terminal:
                console.print(f"… {step}", style="dim")

        def count(more: int) -> None:
            nonlocal done
            before, done = done, done + more
            progress.advance(asked, more)
            if not console.is_terminal and before * 10 // samples < done * 10 // samples:
                console.print(f"… {done} of {samples} answers", style="dim")

        yield say, count, lambda more: progress.advance(timed, more)
