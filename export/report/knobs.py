"""The knobs of a table: the values that its settings have, in order, and the lines along which one of them changes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from export.sweep.table import Point, Table
from transform.molmoe.tiling import TIERS

SOURCE = "source"


@dataclass(frozen=True)
class Knob:
    """`values`: as shown, from little to much; `at`: which of them each point has."""

    key: str
    label: str
    values: tuple[str, ...]
    at: tuple[int, ...]


def tokens_words(point: Point) -> str:
    """The nominal budget, or that it is the source's."""
    return SOURCE if point.tokens is None else str(point.tokens)


def form_words(point: Point) -> str:
    """`int4`; with the dtype where that isn't the source's."""
    return point.form if point.dtype == SOURCE else f"{point.form} {point.dtype}"


def tokens_order(tokens: int | str | None) -> tuple[int, int]:
    """For sorting budgets: numbers, then tiers, then what the source does."""
    if tokens is None:
        return 2, 0
    return (1, list(TIERS).index(tokens)) if isinstance(tokens, str) else (0, tokens)


Order = tuple[float, ...]
_KNOBS: tuple[tuple[str, str, Callable[[Point], str], Callable[[Point], Order]], ...] = (
    ("k", "experts per token, k", lambda point: point.k, lambda p: (sum(p.top_k) / len(p.top_k),)),
    ("blocks", "blocks kept", lambda point: str(point.blocks), lambda point: (point.blocks,)),
    ("tokens", "vision tokens, nominal", tokens_words, lambda point: tokens_order(point.tokens)),
    ("form", "form", form_words, lambda _: ()),
)


def knobs(table: Table) -> tuple[Knob, ...]:
    """All four, also those with one value."""
    return tuple(_knob(table.points, *row) for row in _KNOBS)


def _knob(
    points: Iterable[Point], key: str, label: str, words: Callable[[Point], str], order: Callable[[Point], Order]
) -> Knob:
    points = tuple(points)
    known = sorted({(order(point), words(point)) for point in points})
    place = {value: n for n, value in enumerate(known)}
    return Knob(key, label, tuple(name for _, name in known), tuple(place[order(p), words(p)] for p in points))


def line(all_knobs: Iterable[Knob], knob: Knob, base: int) -> list[int]:
    """The points that have every other knob as the point `base` has it, from little to much of `knob`."""
    lines = _lines(all_knobs, knob)
    return sorted(lines[_others(all_knobs, knob, base)], key=lambda n: knob.at[n])


def _others(all_knobs: Iterable[Knob], knob: Knob, n: int) -> tuple[int, ...]:
    return tuple(other.at[n] for other in all_knobs if other is not knob)


def _lines(all_knobs: Iterable[Knob], knob: Knob) -> dict[tuple[int, ...], list[int]]:
    """The points of every line along `knob`, by what the others are."""
    found: dict[tuple[int, ...], list[int]] = {}
    for n in range(len(knob.at)):
        found.setdefault(_others(all_knobs, knob, n), []).append(n)
    return found


def base_point(all_knobs: tuple[Knob, ...], full: int) -> int:
    """The point whose lines hold the most settings: the full one where others don't have more, else that with most of
    every knob."""

    lines = [(knob, _lines(all_knobs, knob)) for knob in all_knobs]

    def rank(n: int) -> tuple[int, bool, tuple[int, ...]]:
        settings = sum(len(along[_others(all_knobs, knob, n)]) for knob, along in lines)
        return settings, n == full, tuple(knob.at[n] for knob in all_knobs)

    return max(range(len(all_knobs[0].at)), key=rank)
