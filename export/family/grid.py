"""A grid: axes and their values -> settings. `--family` takes two axes, `sweep` more; knows no model but its blocks.

`k=1,2,4 blocks=8,12` is every pair of the two; an axis left out stays as the source has it. One k per kept block is
written in runs, as names have it: `8x4.4x8` is k=8 for four blocks, then k=4 for eight, and meets `blocks=12` alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transform.errors import KnobError
from transform.knobs import MOST_DIGITS

MOST_MEMBERS = 100  # each costs a graph of a megabyte and, verified, a few runs of the model
AXES = ("k", "blocks")
EXAMPLE = "k=1,2,4 blocks=8,12"
_NUMBER = re.compile(rf"[0-9]{{1,{MOST_DIGITS}}}")
_RUNS = re.compile(
    rf"[0-9]{{1,{MOST_DIGITS}}}x[0-9]{{1,{MOST_DIGITS}}}(\.[0-9]{{1,{MOST_DIGITS}}}x[0-9]{{1,{MOST_DIGITS}}})*"
)
Axes = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Setting:
    """One point of the grid. `k`: global, one per kept block, or None (the source's); `blocks`: how many stay."""

    k: int | tuple[int, ...] | None
    blocks: int


def parse_grid(text: str, layers: int) -> tuple[Setting, ...]:
    """Every setting of a family's grid in its order, k outermost; raises KnobError. `layers`: the model's blocks."""
    settings = k_and_blocks(parse_axes(text), layers)
    if len(settings) > MOST_MEMBERS:
        raise KnobError(
            f"a family has at most {MOST_MEMBERS} members, the grid gives {len(settings)}. "
            "Leave out values, or make several families."
        )
    return settings


def parse_axes(text: str, known: Sequence[str] = AXES, example: str = EXAMPLE) -> dict[str, list[str]]:
    """`k=1,2 blocks=8` -> the values of each axis as they were typed; raises KnobError for another axis than those
    `known`, one that occurs twice, and a text without any."""
    axes: dict[str, list[str]] = {}
    for word in text.split():
        name, equals, values = word.partition("=")
        if name not in known or not equals:
            raise KnobError(f"a grid is axes out of {', '.join(known)} as in {example!r}, got {word[:40]!r}.")
        if name in axes:
            raise KnobError(f"a grid names each axis once, {name} occurs twice. Put all values behind one {name}=.")
        axes[name] = values.split(",")
    if not axes:
        raise KnobError(f"a grid needs at least one axis as in {example!r}, got {text[:40]!r}.")
    return axes


def k_and_blocks(axes: Axes, layers: int) -> tuple[Setting, ...]:
    """Every pair of k and blocks, k outermost; raises KnobError."""
    blocks = [_number(value, "blocks") for value in axes["blocks"]] if "blocks" in axes else [layers]
    wrong = [count for count in blocks if not 1 <= count <= layers]
    if wrong:
        raise KnobError(f"blocks must be from 1 to {layers} (the model's blocks), got {wrong[0]}. Choose one of these.")
    if "k" not in axes:
        return tuple(Setting(None, count) for count in blocks)
    settings: list[Setting] = []
    for value in axes["k"]:
        if "x" in value:
            k = _per_block(value, blocks)
            settings.append(Setting(k, len(k)))
        else:
            settings += [Setting(_number(value, "k"), count) for count in blocks]
    return tuple(settings)


def _number(value: str, axis: str) -> int:
    if not _NUMBER.fullmatch(value) or int(value) < 1:
        hint = ", or runs of one per kept block as in 8x4.4x8" if axis == "k" else ""
        raise KnobError(f"{axis}= takes whole numbers from 1{hint}, separated by commas, got {value[:40]!r}.")
    return int(value)


def _per_block(value: str, blocks: list[int]) -> tuple[int, ...]:
    """`8x4.4x8` -> (8, 8, 8, 8, 4, …), expanded only where its length is one of `blocks`."""
    if not _RUNS.fullmatch(value):
        raise KnobError(f"runs of k are written 8x4.4x8 (k=8 for four blocks, then k=4 for eight), got {value[:40]!r}.")
    runs = [tuple(map(int, run.split("x"))) for run in value.split(".")]
    length = sum(count for _, count in runs)
    if length not in blocks or any(count < 1 for _, count in runs):
        raise KnobError(
            f"runs of k must add up to a number of kept blocks: {value[:40]} has {length}, the grid keeps "
            f"{', '.join(map(str, blocks))}. Correct the runs, or add {length} to blocks=."
        )
    return tuple(k for k, count in runs for _ in range(count))
