"""What the page's script draws from, as one JSON object: columns of numbers, as they were measured."""

from collections.abc import Mapping
from itertools import pairwise

from export.report.axes import Axis
from export.report.content import Content
from export.report.importance import protected_blocks, whisker
from export.report.variants import GROUPS, OPEN
from export.sweep.difference import within_error
from export.sweep.table import Share, Table
from importance.scores import Scores
from transform.strict_json import Record


def script_data(content: Content) -> Record:
    """What the script draws from: columns of numbers in the order of the points, times in ms, sizes in bytes."""
    table, tasks = content.table, (None, *content.tasks)
    return {
        "names": [point.name for point in table.points],
        "failed": [sorted(point.errors) for point in table.points],
        "full": content.full,
        "base": content.base,
        "knobs": [
            {"key": knob.key, "label": knob.label, "values": knob.values, "at": knob.at} for knob in content.knobs
        ],
        "axes": [
            {"key": a.key, "label": a.label, "divide": content.scales[a.key].divide, "unit": content.scales[a.key].unit}
            for a in content.axes
        ],
        "workloads": [{"key": key, "new": workload.new} for key, workload in table.workloads.items()],
        "values": {
            at: {axis.key: [axis.of(point, at) for point in table.points] for axis in content.axes}
            for at in table.workloads
        },
        "spread": {
            at: [point.latency[at].spread_ms if at in point.latency else None for point in table.points]
            for at in table.workloads
        },
        "tasks": ["all questions", *content.tasks],
        "accuracy": [[_share(content.share(point, task)) for point in table.points] for task in tasks],
        "drop": [point.quality.drop.mean if point.quality else None for point in table.points],
        "fronts": {
            at: {axis.key: [content.front(axis, at, task) for task in tasks] for axis in content.front_axes}
            for at in table.workloads
        },
        "rises": {
            at: {axis.key: [_rises(content, axis, at, task) for task in tasks] for axis in content.front_axes}
            for at in table.workloads
        },
        "scores": _scores(content.scores, table),
        "groups": [[key, label, key in OPEN] for key, label in GROUPS.items()],
    }


def _rises(content: Content, axis: Axis, at: str, task: str | None) -> list[tuple[float, bool] | None]:
    """Of each point of a front against the one before it: its mean, and whether that lies within the error."""
    along = content.front(axis, at, task)
    rises = [content.rise(n, before, task) for before, n in pairwise(along)]
    return [None, *((rise.mean, within_error(rise)) if rise else None for rise in rises)]


def _share(share: Share | None) -> list[float | None] | None:
    return None if share is None else [share.accuracy, *(share.interval or (None, None))]


def _scores(scores: Scores | None, table: Table) -> Mapping[str, object] | None:
    if scores is None:
        return None
    held = protected_blocks(scores, table.source.layers)
    return {
        "unit": scores.unit,
        "higher": scores.higher_means,
        "blocks": [
            [block, scores.values[block], *(whisker(scores, block) or (None, None)), block in held]
            for block in sorted(scores.values)
        ],
    }
