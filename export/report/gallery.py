"""The tiling gallery: pictures under budgets, with the tiles, their overlap and the padding drawn on them.

Static SVG with the picture inside: it needs no script.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from export.report.axes import percent
from export.report.markup import Html, Inside, tag
from export.report.tables import Column, details, table
from export.report.tiles import Box, Layout, layout
from export.sweep.pictures import Kept
from transform.image_settings import RESIZES
from transform.molmoe.tiling import CROP, WINDOW, BudgetError

Budget = int | str | None  # None: as the source does without a budget


@dataclass(frozen=True)
class Cutting:
    """How pictures are cut: the budgets to compare, and the policy that holds for all."""

    budgets: tuple[Budget, ...]
    resize: str = "pad"
    rule: str = "canvas"

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise BudgetError(
                f"resize must be one of {', '.join(RESIZES)}, got {self.resize[:40]!r}. Choose one of them."
            )

    def layout(self, picture: Kept, budget: Budget) -> Layout:
        """One picture under one budget; raises BudgetError."""
        return layout(picture.width, picture.height, budget, resize=self.resize, rule=self.rule)


def budget_words(budget: Budget) -> str:
    """`432`; without a budget what the source does."""
    return "source" if budget is None else str(budget)


def gallery(pictures: Sequence[Kept], cutting: Cutting) -> Html:
    """For every picture a row with a drawing per budget, and a table of the numbers."""
    return Html("".join(_row(n, picture, cutting) for n, picture in enumerate(pictures)))


def legend() -> Html:
    """What lines and shades mean."""

    def swatch(*inside: Inside) -> Html:
        return tag("svg", *inside, viewBox="0 0 16 16", aria_hidden="true")

    full: dict[str, str | int] = {"x": 1, "y": 1, "width": 14, "height": 14}
    return tag(
        "ul",
        tag("li", swatch(tag("rect", class_="tile inner", **full)), "a tile, 336 × 336 pixels"),
        tag("li", swatch(tag("rect", class_="shared small", **full)), "overlap: seen by several tiles, counted once"),
        tag("li", swatch(tag("rect", class_="padded", **full)), "padding: no picture there"),
        class_="legend",
    )


def _row(n: int, picture: Kept, cutting: Cutting) -> Html:
    made = [(budget, cutting.layout(picture, budget)) for budget in cutting.budgets]
    shown = f"p{n}"
    # The picture is in the page once; the drawings refer to it.
    store = tag(
        "svg",
        tag(
            "defs",
            *([_stripes()] if n == 0 else []),
            tag(
                "image",
                id=shown,
                href="data:image/jpeg;base64," + base64.b64encode(picture.jpeg).decode(),
                width=1,
                height=1,
                preserveAspectRatio="none",
            ),
        ),
        width=0,
        height=0,
        aria_hidden="true",
        class_="store",
    )
    return tag(
        "div",
        tag("h3", picture.name, tag("span", f"{picture.width} × {picture.height} pixels", class_="badge")),
        store,
        tag("div", [_drawing(picture, shown, budget, one) for budget, one in made], class_="gallery"),
        details("The same as a table", _numbers(picture, made)),
    )


def _numbers(picture: Kept, made: Iterable[tuple[Budget, Layout]]) -> Html:
    columns = [
        Column("budget"),
        Column("nominal tokens"),
        Column("image features in the sequence"),
        Column("positions of the sequence"),
        Column("tiles, rows × columns"),
        Column("canvas, pixels"),
        Column("padding"),
        Column("overlap"),
        Column("cut off"),
    ]
    rows = [
        (
            budget_words(budget),
            f"{one.nominal:,}",
            f"{one.features:,}",
            f"{one.positions:,}",
            f"{one.tiling[0]} × {one.tiling[1]}",
            f"{one.canvas[0]} × {one.canvas[1]}",
            percent(one.padding),
            percent(one.overlap),
            percent(one.cut),
        )
        for budget, one in made
    ]
    return table(f"{picture.name} under each budget", columns, rows)


def _drawing(picture: Kept, shown: str, budget: Budget, one: Layout) -> Html:
    across, down = one.canvas
    left, top, width, height = one.picture
    words = (
        f"{picture.name} under budget {budget_words(budget)}: {one.tiling[0]} rows of {one.tiling[1]} tiles on "
        f"{across} × {down} pixels, {percent(one.padding)} padding"
    )
    inside = tag(  # one within the other: nothing shows beyond the canvas
        "svg",
        tag("rect", width=across, height=down, class_="padded"),
        _hatching(across, down),
        tag("use", href=f"#{shown}", transform=f"translate({left} {top}) scale({width} {height})"),
        [_box(shared, "shared") for shared in overlaps(one)],
        [_box(tile, "tile") for tile in one.tiles],
        [_box(tile, "tile inner") for tile in one.tiles],
        width=across,
        height=down,
    )
    drawing = tag("svg", inside, viewBox=f"0 0 {across} {down}", role="img", aria_label=words)
    named = "" if budget == one.nominal else f"{budget_words(budget)}: "
    shares = ((one.padding, "padding"), (one.cut, "cut off"), (one.overlap, "overlap"))
    said = ", ".join(f"{percent(share)} {name}" for share, name in shares if share > 0)
    caption = tag(
        "figcaption",
        tag("b", f"{named}{one.nominal:,} nominal → {one.features:,} real"),
        f"{one.tiling[0]} × {one.tiling[1]} tiles and the whole picture, {one.positions:,} positions",
        f"; {said}" if said else "",
    )
    return tag("figure", drawing, caption)


def _stripes() -> Html:
    """What overlap is shaded with: lines on light ground, so that the picture can be seen, whatever its colours."""
    light = tag("path", d="M8 0V30", class_="light")
    dark = tag("path", d="M11 0V30", class_="dark")
    ground = tag("rect", width=30, height=30, class_="ground")
    size: dict[str, str | int] = {"width": 30, "height": 30, "patternUnits": "userSpaceOnUse"}
    return tag("pattern", ground, light, dark, id="shared", patternTransform="rotate(-45)", **size)


def _hatching(across: int, down: int) -> list[Html]:
    """Diagonal lines under the picture: they show where it doesn't reach."""
    gap = 28
    path = "".join(f"M{x} 0l{-down} {down}" for x in range(gap, across + down, gap))
    return [tag("path", d=path, class_="padline")]


def overlaps(one: Layout) -> list[Box]:
    """The bands that neighbouring tiles share, disjoint: all between columns, then those between rows in pieces."""
    rows, columns = one.tiling
    across, down = one.canvas
    band = CROP - WINDOW
    upright = [(WINDOW * j, 0, band, down) for j in range(1, columns)]
    edges = [0, *(x for left, _, width, _ in upright for x in (left, left + width)), across]
    pieces = [(edges[n], edges[n + 1]) for n in range(0, len(edges), 2)]
    return upright + [(a, WINDOW * i, b - a, band) for i in range(1, rows) for a, b in pieces]


def _box(box: Box, kind: str) -> Html:
    left, top, width, height = box
    return tag("rect", x=left, y=top, width=width, height=height, class_=kind)
