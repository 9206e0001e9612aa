"""What a report shows, gathered from a sweep's directory: the table, fronts, knobs, axes, scores, pictures."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from export.report.axes import FRONTS, Axis, Scale, offered, scales
from export.report.knobs import Knob, base_point, knobs
from export.sweep.answers import SAMPLES
from export.sweep.difference import Differences
from export.sweep.pareto import Place, front
from export.sweep.pictures import Kept, read_pictures
from export.sweep.table import Drop, Point, Share, Table, read_table
from importance.scores import Scores, read_scores
from transform.architectures import architecture_named, known_model_types

SCORES = "scores.json"


@dataclass(frozen=True)
class Content:
    """Everything on the page. `scores`: what chose the blocks; `differences`: between settings, from their answers;
    both None where they aren't beside the table."""

    table: Table
    scores: Scores | None = None
    pictures: tuple[Kept, ...] = ()
    differences: Differences | None = None
    _fronts: dict[tuple[str, str, str | None], list[int]] = field(default_factory=dict, init=False, compare=False)
    _rises: dict[tuple[int, int, str | None], Drop] = field(default_factory=dict, init=False, compare=False)

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """Those that the table has values of."""
        return offered(self.table)

    @cached_property
    def scales(self) -> dict[str, Scale]:
        """How values are shown, by axis."""
        return scales(self.table, self.axes)

    @cached_property
    def knobs(self) -> tuple[Knob, ...]:
        """All four."""
        return knobs(self.table)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The kinds of questions, in order, where there are several."""
        names = sorted({task for point in self.table.points if point.quality for task in point.quality.by_task})
        return tuple(names) if len(names) > 1 else ()

    @cached_property
    def full(self) -> int:
        """Which point is the full model."""
        return [point.name for point in self.table.points].index(self.table.full)

    @cached_property
    def base(self) -> int:
        """The point that the lines of the knobs go through."""
        return base_point(self.knobs, self.full)

    @property
    def cuts_pictures(self) -> bool:
        """Whether the model takes pictures in tiles that this package knows."""
        kind = self.table.source.model_type
        return kind in known_model_types() and architecture_named(kind).modality.sees_images

    @property
    def front_axes(self) -> tuple[Axis, ...]:
        """The costs that accuracy is weighed against."""
        return tuple(axis for axis in self.axes if axis.key in FRONTS)

    def share(self, point: Point, task: str | None) -> Share | None:
        """A point's accuracy, of all questions or of one kind."""
        if point.quality is None:
            return None
        return point.quality.total if task is None else point.quality.by_task.get(task)

    def front(self, axis: Axis, at: str, task: str | None) -> list[int]:
        """The points that no other beats in both, by the measured means, from cheap to dear."""
        known = (axis.key, at, task)
        if known not in self._fronts:
            costs = [axis.of(point, at) for point in self.table.points]
            shares = [self.share(point, task) for point in self.table.points]
            there = [
                Place(str(n), cost, share.accuracy)
                for n, (cost, share) in enumerate(zip(costs, shares, strict=True))
                if cost is not None and share is not None
            ]
            self._fronts[known] = [int(place.name) for place in front(there)]
        return self._fronts[known]

    def rise(self, n: int, before: int, task: str | None) -> Drop | None:
        """How much more accurate a point is than the one before it on a front, on the same questions; None where no
        answers are beside the table. Raises VerificationError for damaged ones."""
        if self.differences is None:
            return None
        known = (n, before, task)
        if known not in self._rises:
            names = self.table.points[n].name, self.table.points[before].name
            self._rises[known] = self.differences.between(*names, task)
        return self._rises[known]


def read_content(directory: Path) -> Content:
    """The sweep in `directory`; raises what `read_table`, `read_scores` and `read_pictures` do."""
    table = read_table(directory)
    scores = directory / SCORES
    return Content(
        table,
        read_scores(scores, table.source.layers) if scores.is_file() else None,
        read_pictures(directory),
        Differences(directory) if table.data and (directory / SAMPLES).is_file() else None,
    )
