"""Configurations: how many experts a token gets in every block, 0 where the block is dropped; and what they cost.

The state before block j depends only on the first j entries, so many configurations together cost one evaluation per
distinct prefix that ends in a kept block. Nothing here runs a model: that is the `Measure` which a search is given.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb
from typing import TYPE_CHECKING

from transform.errors import KnobcastError, KnobError

if TYPE_CHECKING:
    import numpy as np

Config = tuple[int, ...]
# losses [configurations, samples], float64, lower is better; deterministic, a configuration may be asked again
Measure = Callable[[Sequence[Config]], "np.ndarray"]


class MeasureError(KnobcastError):
    """Losses that can't be compared: of another shape, or no finite numbers."""


@dataclass(frozen=True)
class Cost:
    """What measuring takes. `block_evaluations`: with shared prefixes; naive: every configuration on its own."""

    sets: int = 0
    block_evaluations: int = 0
    naive_block_evaluations: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.sets + other.sets,
            self.block_evaluations + other.block_evaluations,
            self.naive_block_evaluations + other.naive_block_evaluations,
        )

    @classmethod
    def of(cls, configs: Sequence[Config]) -> "Cost":
        """Of configurations that are measured in one call."""
        return cls(len(configs), block_evaluations(configs), naive_block_evaluations(configs))


def without(full: Config, dropped: Iterable[int]) -> Config:
    """`full` with 0 for the blocks of `dropped` (indices from 0); KnobError for a block that isn't there."""
    gone = set(dropped)
    outside = sorted(gone - set(range(len(full))))
    if outside:
        raise KnobError(
            f"block indices run from 0 to {len(full) - 1} (the model has {len(full)} blocks), got "
            f"{', '.join(map(str, outside))}. Correct the list."
        )
    return tuple(0 if block in gone else k for block, k in enumerate(full))


def dropped(config: Config) -> tuple[int, ...]:
    """The blocks that `config` drops, ascending."""
    return tuple(block for block, k in enumerate(config) if k == 0)


def keep_blocks(config: Config) -> tuple[int, ...]:
    """The blocks that `config` keeps, ascending."""
    return tuple(block for block, k in enumerate(config) if k != 0)


def free_blocks(full: Config, protected: Iterable[int] | None = None) -> tuple[int, ...]:
    """The kept blocks of `full` that may be dropped, ascending. `protected` None: the first and last index stay."""
    if not keep_blocks(full) or any(type(k) is not int or k < 0 for k in full):
        raise KnobError(
            f"a configuration has a whole number from 0 per block and at least one above 0, got {full!r}. Correct it."
        )
    held = {0, len(full) - 1} if protected is None else set(protected)
    outside = sorted(held - set(range(len(full))))
    if outside:
        raise KnobError(
            f"protected blocks run from 0 to {len(full) - 1} (the model has {len(full)} blocks), got "
            f"{', '.join(map(str, outside))}. Correct the list."
        )
    return tuple(block for block in keep_blocks(full) if block not in held)


def block_evaluations(configs: Iterable[Config]) -> int:
    """What measuring `configs` together computes: the distinct prefixes config[: j + 1] with config[j] != 0.

    Block j runs once per distinct state before it (config[:j]) and k there (config[j]); a dropped block costs nothing.
    All 2^14 sets of 16 blocks whose first and last stay: 1 + (2^14 - 1) + 2^14 = 32,768, exactly.
    """
    distinct = sorted(set(configs))
    if not distinct:
        return 0
    evaluations = len(keep_blocks(distinct[0]))
    for before, config in pairwise(distinct):  # sorted: what a configuration shares, it shares with the one before
        shared = next(
            (j for j, (a, b) in enumerate(zip(before, config, strict=False)) if a != b), min(len(before), len(config))
        )
        evaluations += len(config) - shared - config[shared:].count(0)
    return evaluations


def naive_block_evaluations(configs: Iterable[Config]) -> int:
    """What measuring each of `configs` on its own computes: the sum of their kept blocks."""
    return sum(len(keep_blocks(config)) for config in configs)


def subsets_cost(full: Config, free: Sequence[int], most: int) -> Cost:
    """Of all sets of at most `most` of the `free` blocks in one call, the empty one among them; nothing is listed.

    Before a kept block j lie f free ones, of which up to `most` are dropped: sum over i of C(f, i) distinct states.
    """
    blocks = keep_blocks(full)
    evaluations = sum(up_to(sum(block < j for block in free), most) for j in blocks)
    naive = sum(comb(len(free), i) * (len(blocks) - i) for i in range(most + 1))
    return Cost(up_to(len(free), most), evaluations, naive)


def up_to(n: int, most: int) -> int:
    """How many subsets of n things have at most `most` of them."""
    return sum(comb(n, i) for i in range(min(n, most) + 1))


def measured(measure: Measure, configs: Sequence[Config], samples: int | None = None) -> "np.ndarray":
    """`measure(configs)`, checked: float64 [configurations, samples], finite; MeasureError names what is wrong.

    samples: how many there were in earlier calls, None in the first one.
    """
    import numpy as np

    losses = np.ascontiguousarray(measure(configs), dtype=np.float64)
    wanted = f"[{len(configs)}, {'samples' if samples is None else samples}]"
    if losses.ndim != 2 or losses.shape[0] != len(configs) or losses.shape[1] != (samples or losses.shape[1] or -1):
        raise MeasureError(
            f"losses must have one row per configuration and one column per sample, {wanted}, got "
            f"{list(losses.shape)}. Measure the same samples for every configuration."
        )
    wrong = np.argwhere(~np.isfinite(losses))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise MeasureError(
            f"losses must be finite numbers, with blocks {list(dropped(configs[row]))} dropped sample {column} has "
            f"{losses[row, column]} ({len(wrong)} of {losses.size} are not finite). Check the sample and the weights."
        )
    return losses
