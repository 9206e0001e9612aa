"""Selection strategies, one per file: from scores, or from measured sets, to the blocks that stay.

`top_k`, `threshold` and `sequential` decide by scores alone. `STRATEGIES` measure sets and return what they found;
each is imported when it is used, so that a plan answers at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from importance.configurations import Config, Cost
from transform.errors import KnobError

if TYPE_CHECKING:
    from importance.search.found import Found, Task


@dataclass(frozen=True)
class Strategy:
    """A way to search sets of blocks. `effect`: what it does, in one line; `ref`: where it comes from. Its file has
    `search`, `cost` and `passes`."""

    name: str
    effect: str
    ref: str

    @property
    def search(self) -> Callable[..., "Found"]:
        """`search(measure, full, max_drop, **options) -> Found`; options: `importance.search.found.Options`."""
        return self._module().search

    def cost(self, task: "Task") -> Cost:
        """What it takes, at most, before anything is measured."""
        return self._module().cost(task)

    def passes(self, task: "Task") -> int:
        """How often it goes through all samples, at most: one call of `measure` each."""
        return self._module().passes(task)

    def _module(self) -> ModuleType:
        return import_module(f"importance.search.{self.name}")


STRATEGIES: tuple[Strategy, ...] = (
    Strategy("one_shot", "rank the blocks once, drop the least important", "arXiv:2402.02834 (Shortened LLaMA)"),
    Strategy("window", "drop neighbouring blocks, the best window of each length", "arXiv:2403.17887"),
    Strategy("greedy", "drop the best block, again and again", "arXiv:2402.09025 (SLEB)"),
    Strategy("beam", "keep the best few sets of every size and grow them, never worse than greedy", "beam search"),
    Strategy("exact", "measure every set: the optimum at every depth", "exhaustive search over a prefix trie"),
)


def strategy(name: str) -> Strategy:
    """The strategy of that name; KnobError lists those that there are."""
    found = next((each for each in STRATEGIES if each.name == name), None)
    if found is None:
        raise KnobError(f"a search is one of {', '.join(each.name for each in STRATEGIES)}, got {name!r}. Choose one.")
    return found


def expected_cost(
    name: str,
    full: Config,
    max_drop: int,
    protected: Iterable[int] | None = None,
    width: int = 3,
    *,
    nested: bool = False,
) -> Cost:
    """What a search will take, the unchanged model included; an upper bound where the losses decide what is asked.

    Exact for window, for exact in one call (16,384 sets), and for greedy where protected blocks lie outside the
    free ones; one_shot with given scores takes less. Refuses what the search itself would, but never a large number.
    """
    from importance.search.found import Task

    return strategy(name).cost(Task.of(full, max_drop, protected, width, nested))
