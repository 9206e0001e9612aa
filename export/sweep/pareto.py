"""Fronts: the settings that no other beats in both accuracy and a cost. By measured means alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from export.sweep.constraints import Quantity
from export.sweep.table import Point, Table


@dataclass(frozen=True)
class Place:
    """A setting in the plane of a front."""

    name: str
    cost: float
    accuracy: float


def front(places: Sequence[Place]) -> tuple[Place, ...]:
    """The places that no other dominates, cheapest first: none is as cheap and as accurate and better in one of them.
    Equal ones stay together, in their order."""
    found: list[Place] = []
    best = -1.0
    for place in sorted(places, key=lambda place: (place.cost, -place.accuracy)):
        twin = bool(found) and (place.cost, place.accuracy) == (found[-1].cost, found[-1].accuracy)
        if place.accuracy > best or twin:
            found.append(place)
            best = place.accuracy
    return tuple(found)


def places(table: Table, cost: Quantity, at: str | None, task: str | None = None) -> tuple[Place, ...]:
    """Every setting whose accuracy (on `task`, None: on all questions) and cost were measured."""
    found = []
    for point in table.points:
        accuracy, value = accuracy_of(point, task), cost.read(point, at)
        if accuracy is not None and value is not None:
            found.append(Place(point.name, value, accuracy))
    return tuple(found)


def accuracy_of(point: Point, task: str | None = None) -> float | None:
    """Measured on all questions, or on those of one task."""
    if point.quality is None:
        return None
    share = point.quality.total if task is None else point.quality.by_task.get(task)
    return None if share is None else share.accuracy
