"""What a search finds: for every number of dropped blocks the best set, its losses, and what it took to find it.

`Ledger` does what all strategies share: it checks the question, asks `measure`, counts, and remembers the best set
of every size. A strategy only decides what is asked next.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import comb
from typing import TypedDict

import numpy as np

from importance.configurations import Config, Cost, Measure, free_blocks, keep_blocks, measured, up_to, without
from importance.search.top_k import BlockScores
from transform.errors import KnobError
from transform.progress import Progress

Set = tuple[int, ...]  # blocks that are dropped, ascending


class Options(TypedDict, total=False):
    """What every strategy takes by name; what a strategy has no use for changes nothing.

    protected: blocks that stay, by default the first and the last index; may be empty (one block stays even then).
    scores: block -> importance, high stays; `one_shot` ranks by them instead of measuring. nested: the best chain,
    each set part of the next one. width: the sets that `beam` keeps. progress: told how many sets were just measured;
    `expected_cost` says how many there will be at most.
    """

    protected: Iterable[int] | None
    scores: BlockScores | None
    nested: bool
    width: int
    progress: Progress | None


@dataclass(frozen=True)
class Task:
    """The question, checked: up to `max_drop` of the `free` blocks of `full` may go."""

    full: Config
    max_drop: int
    free: Set
    width: int
    nested: bool

    @classmethod
    def of(cls, full: Config, max_drop: int, protected: Iterable[int] | None, width: int, nested: bool) -> "Task":
        """KnobError for a number of blocks that can't be dropped, 0 being the smallest, or a width below 1."""
        free = free_blocks(full, protected)
        blocks = len(keep_blocks(full))
        most = min(len(free), blocks - 1)
        if type(max_drop) is not int or not 0 <= max_drop <= most:
            raise KnobError(
                f"max_drop must be from 0 to {most} ({blocks} blocks, {len(free)} of them not protected, at "
                f"least one stays), got {max_drop!r}. Choose one of these or protect fewer blocks."
            )
        if type(width) is not int or width < 1:
            raise KnobError(f"a beam keeps at least 1 set of each size, got width={width!r}. Use 1 or more.")
        return cls(full, max_drop, free, width, nested)

    def chain_cost(self) -> Cost:
        """At most: what measuring the sets of the best chain again takes, whose losses weren't kept."""
        if not self.nested:
            return Cost()
        naive = sum(len(keep_blocks(self.full)) - size for size in range(1, self.max_drop + 1))
        return Cost(self.max_drop, naive, naive)


@dataclass(frozen=True)
class Choice:
    """A set and its losses: `loss` is the mean of `losses` [samples], float64, which can't be written to."""

    dropped: Set
    loss: float
    losses: np.ndarray = field(compare=False, repr=False)

    @classmethod
    def of(cls, dropped: Set, loss: float, row: np.ndarray) -> "Choice":
        """With a copy of `row`, so that the losses of all other sets can go."""
        losses = row.copy()
        losses.flags.writeable = False
        return cls(dropped, loss, losses)


@dataclass(frozen=True)
class Found:
    """`best[r - 1]` is the best set of r blocks that was measured; `cost` is what was measured, as calls were made.

    `dropped` doesn't list what `full` itself drops. Of equal losses the lexicographically smallest set is the best.
    """

    strategy: str
    full: Config
    baseline: Choice
    best: tuple[Choice, ...]
    cost: Cost

    def config(self, drop: int) -> Config:
        """The best configuration with `drop` blocks fewer, from 0."""
        return without(self.full, self.best[drop - 1].dropped if drop else ())

    @property
    def nested(self) -> bool:
        """Whether each set is part of the next one."""
        return all(set(a.dropped) < set(b.dropped) for a, b in pairwise(self.best))


class Ledger:
    """A search under way. `task`: the question; `scores` as given; `ask` measures, `found` ends it."""

    def __init__(
        self,
        strategy: str,
        measure: Measure,
        full: Config,
        max_drop: int,
        *,
        protected: Iterable[int] | None = None,
        scores: BlockScores | None = None,
        nested: bool = False,
        width: int = 3,
        progress: Progress | None = None,
    ) -> None:
        self.strategy, self.scores = strategy, scores
        self.task = Task.of(tuple(full), max_drop, protected, width, nested)
        self.cost = Cost()
        self._measure, self._progress = measure, progress
        self._best: dict[int, Choice] = {}
        self._means: dict[Set, float] = {}

    def ask(self, sets: Iterable[Set]) -> dict[Set, float]:
        """Measure sets in one call, the unchanged model too in the first one: set -> mean loss."""
        wanted = set(sets)
        asked = wanted if self._best else wanted | {()}
        means = {}
        for dropped, loss, row in self._rows(asked):
            best = self._best.get(len(dropped))
            if best is None or (loss, dropped) < (best.loss, best.dropped):
                self._best[len(dropped)] = Choice.of(dropped, loss, row)
            means[dropped] = loss
        if self.task.nested:
            self._means |= means
        return {dropped: means[dropped] for dropped in sorted(wanted)}

    def found(self, chain: bool = False) -> Found:
        """The best measured set of every size, or with `chain` the best nested ones among the measured."""
        if not self._best:
            self.ask(())
        best = {size: self._best[size] for size in range(1, self.task.max_drop + 1)}
        if chain:
            wanted = best_chain(self._means, self.task.max_drop)
            missing = {each for each in wanted if each != best[len(each)].dropped}
            best |= {len(dropped): Choice.of(dropped, loss, row) for dropped, loss, row in self._rows(missing)}
        return Found(self.strategy, self.task.full, self._best[0], tuple(best.values()), self.cost)

    def _rows(self, sets: set[Set]) -> list[tuple[Set, float, np.ndarray]]:
        """(set, mean loss, losses [samples]), depth first: neighbours share the longest prefixes."""
        if not sets:
            return []
        asked = sorted(((without(self.task.full, dropped), dropped) for dropped in sets), reverse=True)
        configs = [config for config, _ in asked]
        losses = measured(self._measure, configs, len(self._best[0].losses) if self._best else None)
        self.cost += Cost.of(configs)
        if self._progress:
            self._progress(len(configs))
        means = losses.mean(axis=1).tolist()
        return [(dropped, mean, row) for (_, dropped), mean, row in zip(asked, means, losses, strict=True)]


def most_cost(task: Task, sizes: Mapping[int, int]) -> Cost:
    """At most, of one call with `sizes`: blocks dropped -> how many sets; which sets they are is not known.

    Before a kept block there are as many states as sets, or as ways to drop that many of the free blocks before it.
    """
    counts = {size: min(count, comb(len(task.free), size)) for size, count in sizes.items()}
    blocks = keep_blocks(task.full)
    sets, largest = sum(counts.values()), max(counts, default=0)
    naive = sum(count * (len(blocks) - size) for size, count in counts.items())
    states = sum(min(sets, up_to(sum(each < block for each in task.free), largest)) for block in blocks)
    return Cost(sets, min(naive, states), naive)


def best_chain(means: Mapping[Set, float], longest: int) -> tuple[Set, ...]:
    """S1 ⊂ S2 ⊂ … up to `longest` blocks: of all chains of measured sets the one with the smallest sum of mean losses.

    Dynamic programme over the sets, by size. Of equal sums the lexicographically smallest set stays, from the end.
    """
    total: dict[Set, tuple[float, Set]] = {(): (0.0, ())}  # sum of the best chain that ends here, the set before
    for dropped in sorted((each for each in means if each), key=len):
        smaller = (dropped[:i] + dropped[i + 1 :] for i in range(len(dropped)))
        reached = [(total[each][0], each) for each in smaller if each in total]
        if reached:
            least, before = min(reached)
            total[dropped] = (least + means[dropped], before)
    at = min((each for each in total if len(each) == longest), key=lambda each: (total[each][0], each))
    chain: list[Set] = []
    while at:
        chain.append(at)
        at = total[at][1]
    return tuple(reversed(chain))
