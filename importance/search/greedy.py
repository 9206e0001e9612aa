"""Drop the block without which the loss is lowest, then the next one from what is left, again and again.

Nested by construction: every set is part of the next one. One call per level. Ref: SLEB, arXiv:2402.09025.
"""

from bisect import bisect_left
from typing import Unpack

from importance.configurations import Config, Cost, Measure, keep_blocks, subsets_cost
from importance.search.found import Found, Ledger, Options, Set, Task


def search(measure: Measure, full: Config, max_drop: int, **options: Unpack[Options]) -> Found:
    """The greedy chain of 1 to `max_drop` blocks."""
    ledger = Ledger("greedy", measure, full, max_drop, **options)
    dropped: Set = ()
    for _ in range(max_drop):
        losses = ledger.ask(grown(dropped, ledger.task.free))
        dropped = min(losses, key=lambda each: (losses[each], each))
    return ledger.found()


def cost(task: Task) -> Cost:
    """The first level with the unchanged model, then one block less on every level."""
    total = subsets_cost(task.full, task.free, min(task.max_drop, 1))
    for size in range(2, task.max_drop + 1):
        total += level_cost(task, size)
    return total


def passes(task: Task) -> int:
    """One for each size."""
    return max(1, task.max_drop)


def grown(dropped: Set, free: Set) -> list[Set]:
    """`dropped` and one more of the `free` blocks."""
    return [tuple(sorted((*dropped, block))) for block in free if block not in dropped]


def level_cost(task: Task, size: int) -> Cost:
    """At most, of one set of `size` - 1 blocks grown by one more.

    Before a kept block, either one of the m open blocks in front of it is dropped, or none yet, if one behind it can
    be. Exact where protected blocks lie outside the free ones; between them, m is not known.
    """
    open_blocks = len(task.free) - size + 1
    left = len(keep_blocks(task.full)) - size
    evaluations = sum(m + (m < open_blocks - 1) for m in range(open_blocks))
    for block in keep_blocks(task.full):
        if block not in task.free:
            evaluations += min(bisect_left(task.free, block) + 1, open_blocks)
    return Cost(open_blocks, evaluations, open_blocks * left)
