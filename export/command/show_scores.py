"""Scores as a table: block, score, interval, a small bar, rank. As a picture: `plot.py`."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export.report.importance import heading, protected_blocks, whisker
from importance.scores import Scores

WIDTH = 20  # characters of the longest bar


def show_scores(scores: Scores, console: Console, layers: int | None = None) -> None:
    """Print scores by block. Rank 1 is the most important block; of equal ones the earlier, as selections see it.

    Bars are as long as the score is large: full ones above zero, hollow ones below. layers: as in `plot_scores`;
    the blocks that selections keep by default are marked with a star.
    """
    importance = scores.importance
    order = sorted(importance, key=lambda block: (-importance[block], block))
    rank = {block: place for place, block in enumerate(order, 1)}
    held = protected_blocks(scores, layers) & scores.values.keys()
    largest = max(map(abs, scores.values.values()), default=0.0)
    table = Table(box=None, pad_edge=False)
    for name in ("block", "score", "interval"):
        table.add_column(name, justify="right")
    table.add_column("", width=WIDTH)
    table.add_column("rank", justify="right")
    for block, value in sorted(scores.values.items()):
        bounds = whisker(scores, block)
        length = round(WIDTH * abs(value) / largest) if largest else 0
        table.add_row(
            f"{'* ' * (block in held)}{block}",
            f"{value:.4g}",
            "" if bounds is None else f"{bounds[0]:.4g} to {bounds[1]:.4g}",
            ("█" if value > 0 else "░") * length,
            str(rank[block]),
        )
    console.print(heading(scores), style="italic", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"higher = {escape(scores.higher_means)}" + "; * kept by default" * bool(held), style="dim")
