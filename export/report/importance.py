"""Scores as a picture: one bar per block with its interval, SVG or PNG. Needs the extra [plot].

The same scores give the same bytes (with one version of matplotlib). Colours are told apart by everyone (Okabe and
Ito), and what a colour says is hatched too. The same as a table: `export/command/show_scores.py`.
"""

from pathlib import Path

from export.report.drawing import BLACK, BLUE, ORANGE, check_format, figure, save
from importance.scores import Scores
from importance.tasks import Z95


def plot_scores(scores: Scores, path: Path, *, layers: int | None = None, force: bool = False) -> None:
    """Draw the scores into `path`, an .svg or .png; an existing file is refused unless `force`.

    layers: how many blocks the model has, so that the first and the last, which selections keep, are marked; without
    it they are marked where the scores have every index from 0. Bars: the scores in their own direction and unit;
    whiskers: the interval where there is one, else 1.96 standard errors.
    """
    check_format(path)
    blocks = sorted(scores.values)
    held = protected_blocks(scores, layers)
    values = [scores.values[block] for block in blocks]
    with figure(max(5.0, 1.5 + 0.32 * len(blocks)), 4.0) as drawn:
        from matplotlib.patches import Patch

        axis = drawn.add_subplot()
        colours = [ORANGE if block in held else BLUE for block in blocks]
        bars = axis.bar(range(len(blocks)), values, color=colours, edgecolor=BLACK, linewidth=0.6)
        for block, bar in zip(blocks, bars, strict=True):
            bar.set_hatch("//" if block in held else "")
        for place, block in enumerate(blocks):
            bounds = whisker(scores, block)
            if bounds:
                axis.plot([place, place], bounds, color=BLACK, linewidth=1, marker="_", markersize=5)
        axis.axhline(0, color=BLACK, linewidth=0.8)
        axis.set_xticks(range(len(blocks)), [f"{block}{'*' * (block in held)}" for block in blocks])
        axis.set_xlabel("block")
        axis.set_ylabel(f"{scores.unit}; higher = {scores.higher_means}")
        axis.set_title(heading(scores), fontsize="medium", wrap=True)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
        if held & set(blocks):
            axis.legend(handles=[Patch(facecolor=ORANGE, edgecolor=BLACK, hatch="//", label="* kept by default")])
        save(drawn, path, force)


def heading(scores: Scores) -> str:
    """Metric, unit and samples in one line, and what whiskers mean."""
    count = "unknown number of samples" if scores.samples is None else f"{scores.samples:,} samples"
    kinds = ["interval"] * bool(scores.interval)
    kinds += ["1.96 standard errors"] * any(b not in scores.interval for b in scores.stderr if b in scores.values)
    return f"{scores.metric} ({scores.unit}), {count}" + (f"\nwhiskers: {', else '.join(kinds)}" if kinds else "")


def whisker(scores: Scores, block: int) -> tuple[float, float] | None:
    """(low, high) of a block's score: its interval, else score ± 1.96 stderr, else None."""
    if block in scores.interval:
        return scores.interval[block]
    if block in scores.stderr:
        half = Z95 * scores.stderr[block]
        return scores.values[block] - half, scores.values[block] + half
    return None


def protected_blocks(scores: Scores, layers: int | None = None) -> set[int]:
    """The first and the last block, which selections keep by default, as far as the scores tell which these are."""
    whole = sorted(scores.values) == list(range(len(scores.values)))
    count = layers if layers is not None else len(scores.values) if whole else None
    return {0, count - 1} if count else {0}
