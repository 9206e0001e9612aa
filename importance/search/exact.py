"""Measure every set of at most `max_drop` blocks: the optimum at every depth, in one run.

Feasible because sets share prefixes: 2^14 sets of 16 blocks are 32,768 block evaluations, as many as 2048 whole
forward passes. They are asked depth first, in calls of at most CALL_SETS.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Unpack

from importance.configurations import Config, Cost, Measure, keep_blocks, subsets_cost, up_to
from importance.search.found import Found, Ledger, Options, Set, Task
from transform.errors import KnobError

MOST_SETS = 1_000_000
CALL_SETS = 16_384  # losses of one call: 131 MB at 1000 samples


def search(measure: Measure, full: Config, max_drop: int, **options: Unpack[Options]) -> Found:
    """The best set of every size; with `nested` the best chain, whose sum of mean losses is the smallest there is.

    KnobError for more than MOST_SETS sets.
    """
    ledger = Ledger("exact", measure, full, max_drop, **options)
    free = ledger.task.free
    sets = up_to(len(free), max_drop)
    if sets > MOST_SETS:
        most = max(drop for drop in range(max_drop) if up_to(len(free), drop) <= MOST_SETS)
        raise KnobError(
            f"exact measures every set, at most {MOST_SETS:,}: up to {max_drop} of {len(free)} blocks are {sets:,} "
            f"sets. Lower max_drop to {most} or search with beam."
        )
    order = depth_first(free, max_drop)
    while part := tuple(islice(order, CALL_SETS)):
        ledger.ask(part)
    return ledger.found(chain=ledger.task.nested)


def cost(task: Task) -> Cost:
    """Exact where one call suffices; each further call may run the blocks of one configuration again."""
    total = subsets_cost(task.full, task.free, task.max_drop)
    return total + Cost(0, (_calls(total) - 1) * len(keep_blocks(task.full)), 0) + task.chain_cost()


def passes(task: Task) -> int:
    """One for each call, one for the sets of the best chain."""
    return _calls(subsets_cost(task.full, task.free, task.max_drop)) + task.nested


def _calls(total: Cost) -> int:
    return -(-total.sets // CALL_SETS)


def depth_first(free: Set, most: int) -> Iterator[Set]:
    """All sets of at most `most` of `free`, each once; a block is kept first and then dropped."""
    stack: list[tuple[Set, int]] = [((), 0)]
    while stack:
        dropped, start = stack.pop()
        yield dropped
        if len(dropped) < most:
            stack += [((*dropped, free[i]), i + 1) for i in range(start, len(free))]
