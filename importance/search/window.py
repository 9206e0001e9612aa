"""Drop neighbouring blocks: for every length the window whose loss is lowest.

Neighbours are blocks that follow each other among those that `full` keeps; a window doesn't reach across a protected
block. Ref: arXiv:2403.17887, which finds its window by angular distance, not by loss.
"""

from typing import Unpack

from importance.configurations import Config, Cost, Measure, keep_blocks, without
from importance.search.found import Found, Ledger, Options, Set, Task
from transform.errors import KnobError


def search(measure: Measure, full: Config, max_drop: int, **options: Unpack[Options]) -> Found:
    """All windows of up to `max_drop` blocks in one call. `nested`: windows that grow by one block at either end."""
    ledger = Ledger("window", measure, full, max_drop, **options)
    ledger.ask(windows(ledger.task))
    return ledger.found(chain=ledger.task.nested)


def cost(task: Task) -> Cost:
    """Of the very windows: they don't depend on the losses."""
    return Cost.of([task.full, *(without(task.full, dropped) for dropped in windows(task))]) + task.chain_cost()


def passes(task: Task) -> int:
    """All windows, then the sets of the best chain."""
    return 1 + task.nested


def windows(task: Task) -> list[Set]:
    """Every window of 1 to `max_drop` free blocks; KnobError where no window is that long."""
    runs: list[list[int]] = [[]]
    for block in keep_blocks(task.full):
        if block in task.free:
            runs[-1].append(block)
        else:
            runs.append([])
    longest = max(map(len, runs))
    if task.max_drop > longest:
        raise KnobError(
            f"a window holds neighbouring blocks that aren't protected, at most {longest} here, got "
            f"max_drop={task.max_drop}. Lower max_drop, protect fewer blocks or search with greedy or beam."
        )
    return [
        tuple(run[start : start + size])
        for size in range(1, task.max_drop + 1)
        for run in runs
        for start in range(len(run) - size + 1)
    ]
