"""The parts of the page, each a heading, a place where the script draws, and the same as a table."""

from collections.abc import Iterable

from export.report.axes import Axis, significant
from export.report.content import Content
from export.report.gallery import Budget, Cutting, gallery, legend
from export.report.importance import protected_blocks, whisker
from export.report.knobs import form_words, line, tokens_order, tokens_words
from export.report.markup import Html, Inside, tag
from export.report.opening import workload_words
from export.report.tables import Column, Row, accuracy_cells, details, table
from export.report.variants import named, variants_table
from export.sweep.difference import within_error
from export.sweep.table import Drop, Point


def section(name: str, heading: str, *inside: Inside) -> Html:
    """A part of the page with its anchor."""
    return tag("section", tag("h2", heading, id=f"{name}-title"), *inside, id=name, aria_labelledby=f"{name}-title")


def trade_off(content: Content) -> Html:
    """Accuracy against cost, with the front."""
    if not content.table.data or not content.front_axes:
        return Html("")
    tables = [
        _front_table(content, content.front_axes[0], at, len(content.table.workloads) > 1)
        for at in content.table.workloads
    ]
    return section(
        "trade-off",
        "What accuracy costs",
        tag(
            "p",
            "Each mark is a setting. On the front, no other setting is both cheaper and more often right, by the "
            "measured means. The bars are 95 % intervals. Where the front is dashed, the rise lies within the error: "
            "on the same questions the two settings can't be told apart.",
            class_="note",
        ),
        tag("div", id="scatter-controls", class_="controls"),
        tag("figure", tag("div", id="scatter", class_="plot"), tag("div", id="scatter-legend")),
        tag("div", details("The front as a table", *tables), id="front"),
    )


def _front_table(content: Content, axis: Axis, at: str, several: bool) -> Html:
    scale = content.scales[axis.key]
    unit = f", {scale.unit}" if scale.unit else ""
    columns = [
        *_setting_columns(),
        Column(f"{axis.label}{unit}"),
        Column("to the full model"),
        Column("accuracy"),
        Column("95 % interval"),
        Column("to the one above, points"),
    ]
    whole = axis.of(content.table.points[content.full], at)
    rows: list[Row] = []
    along = content.front(axis, at, None)
    for before, n in zip([None, *along], along, strict=False):
        point = content.table.points[n]
        cost = axis.of(point, at)
        share = accuracy_cells(content.share(point, None))
        ratio = significant(cost / whole) if cost is not None and whole else "–"
        rise = None if before is None else content.rise(n, before, None)
        rows.append((*_setting_cells(content, point), scale.show(cost), ratio, *share, rise_words(rise)))
    return table(f"The front by {axis.label}{f' of {at}' if several else ''}", columns, rows)


def rise_words(rise: Drop | None) -> str:
    """`+2.5, within the error`; a dash where it isn't known."""
    return "–" if rise is None else f"{100 * rise.mean:+.1f}{', within the error' * within_error(rise)}"


def _setting_columns() -> list[Column]:
    return [Column("setting", number=False), Column("k"), Column("blocks"), Column("tokens"),
            Column("form", number=False)]  # fmt: skip


def _setting_cells(content: Content, point: Point) -> Row:
    return named(content.table, point), point.k, str(point.blocks), tokens_words(point), form_words(point)


def by_knob(content: Content) -> Html:
    """Accuracy and latency along each knob, the others held."""
    changing = [knob for knob in content.knobs if len(knob.values) > 1]
    if not changing:
        return Html("")
    tables = []
    for knob in changing:
        held = ", ".join(f"{o.label} {o.values[o.at[content.base]]}" for o in content.knobs if o is not knob)
        columns = [Column(knob.label, number=False), Column("accuracy"), Column("95 % interval")]
        latencies = [axis for axis in content.axes if axis.key == "total_ms"]
        columns += [
            Column(f"{axis.label} of {at}, {content.scales[axis.key].unit}")
            for at in content.table.workloads
            for axis in latencies
        ]
        rows: list[Row] = []
        for n in line(content.knobs, knob, content.base):
            point = content.table.points[n]
            times = [content.scales[a.key].show(a.of(point, at)) for at in content.table.workloads for a in latencies]
            rows.append((knob.values[knob.at[n]], *accuracy_cells(content.share(point, None)), *times))
        tables.append(table(f"By {knob.label}, at {held}", columns, rows))
    return section(
        "knobs",
        "One knob at a time",
        tag("p", "A knob changes along each plot, the others stay where they are set here.", class_="note"),
        tag("div", id="knob-controls", class_="controls"),
        tag("div", id="knob-plots", class_="small"),
        details("The same as tables", *tables),
    )


def stages(content: Content) -> Html:
    """Where the time goes."""
    if not any(axis.key in ("total_ms", "prefill_flops") for axis in content.axes):
        return Html("")
    tables = [_stage_table(content, at) for at in content.table.workloads]
    return section(
        "time",
        "Where the time goes",
        tag(
            "p",
            "Vision: cutting the picture and computing its features. Prefill: the prompt up to the first token of the "
            "answer. Decode: every further token. FLOPs are counted from the configuration, not measured.",
            class_="note",
        ),
        tag("div", id="stage-controls", class_="controls"),
        tag("figure", tag("div", id="stages", class_="plot"), tag("div", id="stage-legend")),
        details("The settings on the front as tables", *tables),
        tag("p", "All others: below, under “latency by stage”.", class_="note"),
    )


def _stage_table(content: Content, at: str) -> Html:
    keys = ("vision_ms", "prefill_ms", "decode_ms", "total_ms", "vision_flops", "prefill_flops", "decode_flops")
    axes = [axis for axis in content.axes if axis.key in keys]
    columns = [Column("setting", number=False), *(Column(_with_unit(content, axis)) for axis in axes)]
    shown = {content.full, *(content.front(content.front_axes[0], at, None) if content.table.data else ())}
    rows: Iterable[Row] = (
        (named(content.table, point), *(content.scales[axis.key].show(axis.of(point, at)) for axis in axes))
        for n, point in enumerate(content.table.points)
        if n in shown
    )
    return table(f"Stages of {workload_words(at, content.table.workloads[at])}", columns, rows)


def _with_unit(content: Content, axis: Axis) -> str:
    unit = content.scales[axis.key].unit
    return f"{axis.label}, {unit}" if unit else axis.label


def importance(content: Content) -> Html:
    """The scores that chose the blocks."""
    scores = content.scores
    if scores is None:
        return Html("")
    held = protected_blocks(scores, content.table.source.layers)
    rows: list[Row] = []
    for block in sorted(scores.values):
        found = whisker(scores, block)
        between = f"{significant(found[0])} to {significant(found[1])}" if found else "–"
        rows.append((str(block), significant(scores.values[block]), between, "yes" if block in held else ""))
    columns = [Column("block"), Column("score"), Column("interval"), Column("kept by default", number=False)]
    counted = f", measured on {scores.samples:,} samples" if scores.samples else ""
    return section(
        "blocks",
        "Which blocks matter",
        tag("p", f"{scores.metric} ({scores.unit}){counted}. Higher: {scores.higher_means}.", class_="note"),
        tag("div", id="score-controls", class_="controls"),
        tag("figure", tag("div", id="scores", class_="plot"), tag("div", id="score-legend")),
        details("The same as a table", table("Scores by block", columns, rows)),
    )


def tilings(content: Content, cutting: Cutting | None) -> Html:
    """The gallery, for the budgets of the sweep."""
    if not content.pictures or cutting is None or not content.cuts_pictures:
        return Html("")
    return section("tiling", "How pictures are cut", tiling_note(), legend(), gallery(content.pictures, cutting))


def tiling_note() -> Html:
    """What nominal and real tokens are."""
    return tag(
        "p",
        "A budget is nominal: 144 tokens for the whole picture and for each tile, which is what the vision encoder "
        "computes. The sequence holds fewer, for overlaps are counted once.",
        class_="note",
    )


def sweep_budgets(content: Content) -> tuple[Budget, ...]:
    """The budgets of the table, the source's own last."""
    return tuple(sorted({point.tokens for point in content.table.points}, key=tokens_order))


def settings(content: Content) -> Html:
    """All numbers, and what failed."""
    failed = [point for point in content.table.points if point.errors]
    problems = tag(
        "ul",
        [
            tag("li", tag("b", point.name), f", {part}: {said}")
            for point in failed
            for part, said in sorted(point.errors.items())
        ],
        class_="problem",
    )
    groups = tag(
        "fieldset",
        tag("legend", "Columns"),
        id="column-groups",
        hidden=True,
    )
    return section(
        "settings",
        "All settings",
        tag("p", "The command makes the variant; what wasn't measured has a dash.", class_="note"),
        tag("div", id="filters", class_="controls"),
        groups,
        tag("p", id="filter-status", class_="status", role="status"),
        variants_table(content.table, content.tasks, content.axes, content.scales),
        *([tag("h3", "What failed"), problems] if failed else []),
    )
