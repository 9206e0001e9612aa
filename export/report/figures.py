"""The report's plots as files: SVG and PNG, for papers and slides. Numbers and choices are the page's.

Needs the extra [plot].
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from export.report.axes import DRAWN, Axis
from export.report.content import Content
from export.report.drawing import BLACK, BLUE, FORMATS, GREEN, ORANGE, RED, figure, save
from export.report.gallery import Cutting, budget_words, overlaps
from export.report.importance import plot_scores
from export.report.knobs import line
from export.sweep.pictures import Kept
from transform.molmoe.pictures import decode_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Figure"], None]
STAGES = (("vision", BLUE), ("prefill", ORANGE), ("decode", GREEN))
SHAPES = "osD^vP*X"


def write_figures(content: Content, cutting: Cutting, folder: Path, force: bool = False) -> list[Path]:
    """Every plot of the report in `folder`, which must exist; the files, in order.

    Raises PlotError without matplotlib and WriteError for a file that exists, unless `force`.
    """
    written: list[Path] = []
    for name, size, draw in plots(content):
        with figure(*size) as drawn:
            draw(drawn)
            for form in FORMATS:
                save(drawn, folder / f"{name}{form}", force)
                written.append(folder / f"{name}{form}")
    if content.scores:
        for form in FORMATS:
            plot_scores(content.scores, folder / f"blocks{form}", layers=content.table.source.layers, force=force)
            written.append(folder / f"blocks{form}")
    if content.pictures and content.cuts_pictures:
        written += write_tilings(content.pictures, cutting, folder, force)
    return written


def write_tilings(pictures: tuple[Kept, ...], cutting: Cutting, folder: Path, force: bool = False) -> list[Path]:
    """The gallery as one figure, a row per picture and a column per budget."""
    rows, columns = len(pictures), len(cutting.budgets)
    written = []
    with figure(2.6 * columns, 2.6 * rows) as drawn:
        places = drawn.subplots(rows, columns, squeeze=False)
        for row, picture in zip(places, pictures, strict=True):
            row[0].set_ylabel(picture.name, fontsize="small")
            for place, budget in zip(row, cutting.budgets, strict=True):
                _tiling(place, picture, cutting, budget)
        for form in FORMATS:
            save(drawn, folder / f"tiling{form}", force)
            written.append(folder / f"tiling{form}")
    return written


def plots(content: Content) -> Iterator[tuple[str, tuple[float, float], Draw]]:
    """Names, sizes in inches and what draws them, all but scores and tilings."""
    table, several = content.table, len(content.table.workloads) > 1
    changing = [knob for knob in content.knobs if len(knob.values) > 1]
    measured = [axis for axis in content.axes if axis.key == "total_ms"]
    for at in table.workloads:
        tail = f"-{at}" if several else ""
        for axis in (axis for axis in content.front_axes if table.data and axis.key in DRAWN):
            if several and axis.group not in ("latency", "stages") and at != next(iter(table.workloads)):
                continue  # the same at every workload, or nearly
            name = f"front-{axis.key.replace('_', '-')}{tail}"
            yield name, (7.0, 4.4), partial(_front, content=content, axis=axis, at=at)
        if changing and (table.data or measured):
            rows = bool(table.data) + bool(measured)
            yield f"knobs{tail}", (3.2 * len(changing), 2.7 * rows), partial(_knobs, content=content, at=at)
        if measured:
            chosen = _staged(content, at)
            size = (7.0, 1.2 + 0.26 * len(chosen))
            yield f"time{tail}", size, partial(_stages, content=content, at=at, chosen=chosen)


def _front(drawn: "Figure", content: Content, axis: Axis, at: str) -> None:
    place = drawn.add_subplot()
    points, scale = content.table.points, content.scales[axis.key]
    knob = next((knob for knob in content.knobs if len(knob.values) > 1), content.knobs[0])
    front = content.front(axis, at, None)
    colours = _ramp(len(knob.values))
    for n, value in enumerate(knob.values):
        held = [p for p, where in zip(points, knob.at, strict=True) if where == n]
        pairs = [(axis.of(p, at), p.quality) for p in held]
        known = [(cost / scale.divide, 100 * q.total.accuracy) for cost, q in pairs if cost is not None and q]
        place.scatter(
            [x for x, _ in known], [y for _, y in known], s=26, marker=SHAPES[n % len(SHAPES)], color=colours[n],
            edgecolors=BLACK, linewidths=0.5, label=f"{knob.key} {value}", zorder=3,
        )  # fmt: skip
    steps = [((axis.of(points[n], at) or 0) / scale.divide, points[n].quality) for n in front]
    shares = [(x, q.total) for x, q in steps if q]
    place.step(
        [x for x, _ in shares], [100 * s.accuracy for _, s in shares], where="post", color=RED, label="the front"
    )
    for x, share in shares:
        if share.interval:
            place.plot([x, x], [100 * b for b in share.interval], color=BLACK, linewidth=0.8, alpha=0.6, zorder=2)
    place.set_xlabel(f"{axis.label}{f', {scale.unit}' if scale.unit else ''}")
    place.set_ylabel("accuracy, %")
    place.set_title(_where(content, at), fontsize="medium", wrap=True)
    place.grid(alpha=0.3)
    place.set_axisbelow(True)
    place.legend(fontsize="small", loc="lower right")


def _knobs(drawn: "Figure", content: Content, at: str) -> None:
    changing = [knob for knob in content.knobs if len(knob.values) > 1]
    total = next((axis for axis in content.axes if axis.key == "total_ms"), None)
    points, rows = content.table.points, []
    if content.table.data:
        rows.append("accuracy")
    if total:
        rows.append("latency")
    places = drawn.subplots(len(rows), len(changing), squeeze=False)
    for column, knob in enumerate(changing):
        along = line(content.knobs, knob, content.base)
        for row, what in enumerate(rows):
            place = places[row][column]
            if what == "accuracy":
                shares = [(knob.at[n], content.share(points[n], None)) for n in along]
                known = [(x, share) for x, share in shares if share]
                place.plot([x for x, _ in known], [100 * s.accuracy for _, s in known], marker="o", color=BLUE)
                for x, share in known:
                    if share.interval:
                        place.plot([x, x], [100 * b for b in share.interval], color=BLACK, linewidth=0.8, marker="_")
                place.set_ylabel("accuracy, %" if column == 0 else "")
            elif total:
                times = [(knob.at[n], total.of(points[n], at)) for n in along]
                place.plot([x for x, t in times if t], [t for _, t in times if t], marker="o", color=BLUE)
                place.set_ylim(bottom=0)
                place.set_ylabel("total latency, ms" if column == 0 else "")
            place.set_xticks(range(len(knob.values)), list(knob.values))
            place.set_xlim(-0.5, len(knob.values) - 0.5)
            place.set_xlabel(knob.label)
            place.grid(axis="y", alpha=0.3)
    held = ", ".join(f"{knob.key} {knob.values[knob.at[content.base]]}" for knob in content.knobs)
    drawn.suptitle(f"{_where(content, at)}, around {held}", fontsize="medium")


def _staged(content: Content, at: str) -> list[int]:
    """The settings on the front and the full one, from slow to quick, for bars are drawn upwards."""
    total = next(axis for axis in content.axes if axis.key == "total_ms")
    chosen = {
        content.full,
        *(content.front(total, at, None) if content.table.data else range(len(content.table.points))),
    }
    timed = [(content.table.points[n].latency[at].total_ms, n) for n in chosen if at in content.table.points[n].latency]
    return [n for _, n in sorted(timed, reverse=True)]


def _stages(drawn: "Figure", content: Content, at: str, chosen: list[int]) -> None:
    place = drawn.add_subplot()
    steps = content.table.workloads[at].new - 1
    found = [content.table.points[n].latency[at] for n in chosen]
    parts = {
        "vision": [one.vision_ms or 0.0 for one in found],
        "prefill": [one.prefill_ms for one in found],
        "decode": [one.decode_ms * steps for one in found],
    }
    behind = [0.0] * len(chosen)
    for stage, colour in STAGES:
        place.barh(range(len(chosen)), parts[stage], left=behind, color=colour, edgecolor="white", label=stage)
        behind = [a + b for a, b in zip(behind, parts[stage], strict=True)]
    place.set_yticks(range(len(chosen)), [content.table.points[n].name for n in chosen], fontsize="small")
    place.set_xlabel("ms of the whole workload")
    place.set_title(_where(content, at), fontsize="medium", wrap=True)
    place.grid(axis="x", alpha=0.3)
    place.set_axisbelow(True)
    place.legend(fontsize="small", loc="upper right")


def _tiling(place: "Axes", picture: Kept, cutting: Cutting, budget: int | str | None) -> None:
    from matplotlib.patches import Rectangle

    one = cutting.layout(picture, budget)
    across, down = one.canvas
    left, top, width, height = one.picture
    place.set_facecolor("#dde1e6")
    place.imshow(decode_image(picture.jpeg), extent=(left, left + width, top + height, top))
    for x, y, w, h in overlaps(one):
        place.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=BLUE, hatch="\\\\\\", alpha=0.6, linewidth=0))
    for x, y, w, h in one.tiles:
        place.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=BLUE, linewidth=1.2))
    place.set_xlim(0, across)
    place.set_ylim(down, 0)
    place.set_xticks([])
    place.set_yticks([])
    place.set_title(
        f"{budget_words(budget)}: {one.nominal:,} nominal, {one.features:,} real\n"
        f"{one.tiling[0]} × {one.tiling[1]} tiles, {100 * one.padding:.0f} % padding",
        fontsize="small",
    )


def _where(content: Content, at: str) -> str:
    several = len(content.table.workloads) > 1
    return f"{content.table.source.name}{f', {at}' if several else ''}"


def _ramp(count: int) -> list[tuple[float, float, float, float]]:
    """So many colours from dark to light, told apart in grey too."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.95 * n / max(count - 1, 1)) for n in range(count)]
