"""The head of the report: what was swept on what, and the cheapest settings that keep most of the accuracy."""

from collections.abc import Mapping

from export.report.axes import percent
from export.report.content import Content
from export.report.markup import Html, Inside, tag
from export.sweep.table import Point, Workload

# Shares of the full model's accuracy that the head of the page names a setting for.
KEPT = (0.99, 0.95, 0.9)


def workload_words(name: str, workload: Workload) -> str:
    """`qa: a picture of 640 × 480, 32 tokens of prompt, 8 of answer`."""
    picture = f"a picture of {workload.image[0]} × {workload.image[1]}, " if workload.image else ""
    return f"{name}: {picture}{workload.prompt} tokens of prompt, {workload.new} of answer"


def facts(content: Content) -> Html:
    """What was swept, on what, where."""
    sweep, source = content.table, content.table.source
    k = sorted(set(source.top_k))
    rows: list[tuple[str, Inside]] = [
        ("model", f"{source.name} ({source.model_type}): {source.layers} blocks, "
                  f"{' or '.join(map(str, k))} of {source.experts} experts per token"),
        ("grid", sweep.grid),
        ("blocks chosen by", sweep.chosen_by),
    ]  # fmt: skip
    if sweep.data:
        pictures = f" on {sweep.data.pictures:,} pictures" if sweep.data.pictures else ""
        rows.append(("questions", f"{sweep.data.name}: {sweep.data.samples:,}{pictures}, graded by {sweep.data.task}"))
    rows.append(("workloads", [tag("div", workload_words(*one)) for one in sweep.workloads.items()]))
    rows.append(("latencies", _machine(sweep.machine) if sweep.machine else "not measured"))
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows], class_="facts")


def _machine(machine: Mapping[str, object]) -> str:
    found = [str(machine.get("gpu") or machine.get("cpu") or "a machine")]
    threads = machine.get("threads")
    if isinstance(threads, int):
        found.append(f"{threads} thread{'s' * (threads != 1)}")
    versions = machine.get("versions")
    if isinstance(versions, dict):
        found += [f"{name} {version}" for name, version in sorted(versions.items()) if name.startswith("onnxruntime")]
    return ", ".join(found)


def cards(content: Content) -> Html:
    """The full model, and the cheapest settings that keep most of its accuracy, by the measured means."""
    axis = next((axis for axis in content.front_axes if axis.key in ("total_ms", "bytes")), None)
    points, at = content.table.points, next(iter(content.table.workloads), "")
    full = points[content.full]
    if axis is None or full.quality is None:
        return Html("")
    whole, cost = full.quality.total.accuracy, axis.of(full, at)
    unit = content.scales[axis.key]
    where = f" at {at}" if len(content.table.workloads) > 1 and axis.key == "total_ms" else ""
    said = [] if cost is None else [tag("br"), f"{unit.show(cost)} {unit.unit}{where}"]
    made = [_card(percent(whole), "of the questions right: the full model", [tag("b", full.name), *said])]
    for share in KEPT:
        fitting = [n for n in content.front(axis, at, None) if _accuracy(points[n]) >= share * whole]
        best = points[fitting[0]] if fitting else None
        found = axis.of(best, at) if best else None
        if best is None or found is None or best is full:
            continue
        big = f"{found / cost:.2f} ×" if cost else f"{unit.show(found)} {unit.unit}"
        what = "latency" if axis.key == "total_ms" else "bytes"
        who = [tag("b", best.name), tag("br"), f"{percent(_accuracy(best))}, {unit.show(found)} {unit.unit}"]
        made.append(_card(big, f"the {what}{where}, for at least {share:.2f} of the accuracy", who))
    return tag("ul", made, class_="cards")


def _accuracy(point: Point) -> float:
    return point.quality.total.accuracy if point.quality else 0.0


def _card(big: str, what: str, who: Inside) -> Html:
    inside = (
        tag("span", big, class_="big"),
        tag("span", what, class_="what"),
        tag("span", who, class_="who"),
    )
    return tag("li", *inside)
