"""Tables of what a search or an allocation of experts found. Scores of single blocks: `show_scores.py`."""

from rich.console import Console
from rich.table import Table

from importance.results import Allocations, SetNotes


class SetsFile(SetNotes):
    """A sets file as far as the table shows it."""

    sets: dict[str, list[int]]


def show_sets(found: SetsFile, console: Console) -> None:
    """The best set for each number of blocks, with what it loses beside the full model."""
    table = Table(box=None, pad_edge=False, title=f"{found['strategy']}, {found['objective']}", title_justify="left")
    table.add_column("blocks", justify="right")
    table.add_column("drop")
    for name in ("loss", "± stderr"):
        table.add_column(name, justify="right")
    for blocks, dropped in found["sets"].items():
        loss = found["losses"][blocks]
        error = "" if loss["stderr"] is None else f"{loss['stderr']:.4f}"
        table.add_row(blocks, " ".join(map(str, dropped)), f"{loss['increase']:+.4f}", error)
    console.print(table)
    console.print(
        f"{found['configurations']:,} configurations, {found['block_evaluations']:,} block evaluations per picture "
        f"(one by one: {found['naive_block_evaluations']:,}); {found['samples']} samples",
        style="dim",
    )


def show_widths(found: Allocations, console: Console) -> None:
    """The allocation of experts beside the same k everywhere."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("k per block")
    for name in ("predicted", "measured", "± stderr"):
        table.add_column(name, justify="right")
    for row in found["allocation"]:
        error = "" if row["stderr"] is None else f"{row['stderr']:.4f}"
        ks = ",".join(map(str, row["k"]))
        table.add_row(row["name"], ks, f"{row['predicted']:+.4f}", f"{row['increase']:+.4f}", error)
    console.print(table)
    if found["exportable"]:
        console.print(f"knobcast export --k {found['k']}", style="dim")
    else:
        console.print("this model's format has one k for all blocks: the allocation can't be exported", style="yellow")
