"""Tables behind the plots, as HTML: there without a script, and what a screen reader reads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from export.report.axes import percent
from export.report.markup import Html, Inside, tag
from export.sweep.table import Share


@dataclass(frozen=True)
class Column:
    """`sort`: the key by which the script sorts it, None: it doesn't; `group`: what is shown or hidden together."""

    label: Inside
    number: bool = True
    sort: str | None = None
    group: str | None = None
    workload: str | None = None


Row = tuple[Inside, ...]


def table(
    caption: Inside,
    columns: Sequence[Column],
    rows: Iterable[Row],
    *,
    name: str | None = None,
    tall: bool = False,
    marks: Sequence[dict[str, str | int]] = (),
) -> Html:
    """Columns and rows; a row's first cell is its header. `name`: the id of the table; `marks`: attributes of rows.

    It scrolls by itself, so it can be focused and has a name.
    """
    head = tag("tr", [_head(column) for column in columns])
    body = [tag("tr", _cells(columns, row), **(marks[n] if marks else {})) for n, row in enumerate(rows)]
    made = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body), id=name)
    label = caption if isinstance(caption, str) and not isinstance(caption, Html) else "Table"
    return tag("div", made, class_="scroll tall" if tall else "scroll", tabindex=0, role="region", aria_label=label)


def _cells(columns: Sequence[Column], row: Row) -> Iterable[Html]:
    for n, (column, cell) in enumerate(zip(columns, row, strict=True)):
        kind = "num" if column.number else None
        yield tag("td", cell, class_=kind) if n else tag("th", cell, scope="row", class_=kind)


def _head(column: Column) -> Html:
    return tag(
        "th",
        column.label,
        scope="col",
        class_="num" if column.number else None,
        data_sort=column.sort,
        data_group=column.group,
        data_at=column.workload,
    )


def accuracy_cells(share: Share | None) -> tuple[str, str]:
    """The mean, and its interval."""
    if share is None:
        return "–", "–"
    return percent(share.accuracy), interval(share.interval)


def interval(bounds: tuple[float, float] | None, signed: bool = False) -> str:
    """`84.1 to 92.3 %`."""
    if bounds is None:
        return "–"
    shape = "+.1f" if signed else ".1f"
    return f"{100 * bounds[0]:{shape}} to {100 * bounds[1]:{shape}}\N{NO-BREAK SPACE}%"


def details(summary: str, *inside: Inside) -> Html:
    """A part that is folded until asked for."""
    return tag("details", tag("summary", summary), *inside)
