"""Rank the blocks once, by what the loss is without each of them or by given scores, and drop the least important.

Cheapest of all, and nested by construction; it knows nothing of how blocks depend on each other. Ref: Shortened LLaMA,
arXiv:2402.02834 (perplexity without a block).
"""

from typing import Unpack

from importance.configurations import Config, Cost, Measure, subsets_cost
from importance.search.found import Found, Ledger, Options, Task, most_cost
from importance.search.top_k import as_mapping, ranked


def search(measure: Measure, full: Config, max_drop: int, **options: Unpack[Options]) -> Found:
    """The r lowest of the ranking for every r. Of equal scores the earlier block stays, as in `keep_top_k`; of equal
    losses the earlier block goes first, as in every search. ScoresError names free blocks without a score."""
    ledger = Ledger("one_shot", measure, full, max_drop, **options)
    task = ledger.task
    if ledger.scores is None:
        losses = ledger.ask((block,) for block in task.free) if max_drop else {}
        order = sorted(losses, key=lambda single: (losses[single], single))
        blocks = [block for (block,) in order]
    else:
        values, layers = as_mapping(ledger.scores, len(full))
        rankable = ranked(values, layers, set(range(layers)) - set(task.free))
        blocks = sorted(rankable, key=lambda block: (values[block], -block))
    first = 1 if ledger.scores is not None else 2
    ledger.ask(tuple(sorted(blocks[:size])) for size in range(first, max_drop + 1))
    return ledger.found()


def cost(task: Task) -> Cost:
    """Every free block alone, then one set of every size from 2."""
    singles = subsets_cost(task.full, task.free, min(task.max_drop, 1))
    return singles + most_cost(task, dict.fromkeys(range(2, task.max_drop + 1), 1))


def passes(task: Task) -> int:
    """The single blocks, then the sets."""
    return 1 + (task.max_drop > 1)
