"""Keep the best few sets of every size and grow each by every block that is left.

The greedy chain always has a place in the beam, so that no result is worse than greedy's. One call per level; sets
that two parents grow into are measured once.
"""

from typing import Unpack

from importance.configurations import Config, Cost, Measure, subsets_cost
from importance.search.found import Found, Ledger, Options, Set, Task, most_cost
from importance.search.greedy import grown, level_cost


def search(measure: Measure, full: Config, max_drop: int, **options: Unpack[Options]) -> Found:
    """The best set of every size that `width` sets of the size before grow into. `nested`: the best chain of these."""
    ledger = Ledger("beam", measure, full, max_drop, **options)
    task = ledger.task
    beam: list[Set] = [()]
    greedy: Set = ()
    for _ in range(max_drop):
        losses = ledger.ask(child for parent in beam for child in grown(parent, task.free))
        order = sorted(losses, key=lambda each: (losses[each], each))
        greedy = next(each for each in order if set(greedy) < set(each))
        beam = order[: task.width]
        if greedy not in beam:
            beam[-1] = greedy
    return ledger.found(chain=task.nested)


def cost(task: Task) -> Cost:
    """At most: the sets that `width` parents grow into, as far as there are different ones."""
    total = subsets_cost(task.full, task.free, min(task.max_drop, 1))
    sets = len(task.free)
    for size in range(2, task.max_drop + 1):
        parents = min(task.width, sets)
        one = level_cost(task, size)
        bound = most_cost(task, {size: parents * one.sets})
        sets = bound.sets
        evaluations = min(parents * one.block_evaluations, bound.block_evaluations)
        total += Cost(sets, evaluations, bound.naive_block_evaluations)
    return total + task.chain_cost()


def passes(task: Task) -> int:
    """One for each size, one for the sets of the best chain."""
    return max(1, task.max_drop) + task.nested
