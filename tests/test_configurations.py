"""Configurations and what they cost: counted from the definition, and in closed form."""

import subprocess
import sys
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from importance.configurations import (
    Config,
    Cost,
    MeasureError,
    block_evaluations,
    dropped,
    free_blocks,
    keep_blocks,
    measured,
    naive_block_evaluations,
    subsets_cost,
    without,
)
from transform.errors import KnobError

few = settings(max_examples=100, deadline=None, derandomize=True)
CONFIGS = st.lists(st.tuples(*[st.integers(0, 2)] * 5), max_size=30)


def by_definition(configs: list[Config]) -> int:
    return len({config[: j + 1] for config in configs for j in range(len(config)) if config[j] != 0})


def subsets(free: tuple[int, ...], most: int) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(free, size) for size in range(most + 1)))


def test_dropping_and_reading_back() -> None:
    assert without((8, 8, 4), [1]) == (8, 0, 4)
    assert without((8, 0, 4), ()) == (8, 0, 4)
    assert without((8, 0, 4), iter((1, 2))) == (8, 0, 0)
    assert (dropped((8, 0, 4, 0)), keep_blocks((8, 0, 4, 0))) == ((1, 3), (0, 2))
    with pytest.raises(KnobError, match=r"0 to 2 \(the model has 3 blocks\), got -1, 3\. Correct"):
        without((8, 8, 4), [3, 0, -1])


def test_free_blocks() -> None:
    assert free_blocks((8, 8, 8, 8)) == (1, 2)
    assert free_blocks((8, 0, 8, 8), protected=()) == (0, 2, 3)
    assert free_blocks((8,)) == free_blocks((8, 8)) == ()
    for wrong in ((), (0, 0), (8, -1), (8, 1.0)):
        with pytest.raises(KnobError, match="whole number from 0"):
            free_blocks(wrong)  # type: ignore[arg-type]
    with pytest.raises(KnobError, match=r"0 to 1 .*got 2\."):
        free_blocks((8, 8), protected=[2])


@few
@given(CONFIGS)
def test_evaluations_are_the_distinct_prefixes_that_end_in_a_kept_block(configs: list[Config]) -> None:
    assert block_evaluations(configs) == by_definition(configs)
    assert block_evaluations(iter(configs)) == block_evaluations(reversed(configs))
    assert naive_block_evaluations(configs) == sum(k != 0 for config in configs for k in config)


def test_evaluations_of_a_few() -> None:
    assert block_evaluations([]) == 0
    assert block_evaluations([(0, 0)]) == 0
    assert block_evaluations([(8, 8, 8)]) == 3
    assert block_evaluations([(8, 8, 8), (8, 0, 8), (8, 8, 0)]) == 4  # block 2 once more, behind block 0
    assert block_evaluations([(8, 8), (4, 8)]) == 4  # another k, another state


def test_all_sets_of_sixteen_blocks() -> None:
    """1 + (1 + 2 + … + 2^13) + 2^14: the first block, the 14 free ones, the last. There is no off-by-few."""
    full, free = (8,) * 16, tuple(range(1, 15))
    configs = [without(full, each) for each in subsets(free, 14)]
    assert len(configs) == 2**14
    assert block_evaluations(configs) == by_definition(configs) == 32_768
    assert naive_block_evaluations(configs) == 147_456
    assert subsets_cost(full, free, 14) == Cost(2**14, 32_768, 147_456)
    # without protected blocks, all sets with the one that drops everything
    assert subsets_cost(full, tuple(range(16)), 16) == Cost(2**16, 65_535, 524_288)


@pytest.mark.parametrize(("size", "sets", "evaluations"), [(2, 120, 679), (4, 1820, 6187), (6, 8008, 19447)])
def test_sets_of_one_size(size: int, sets: int, evaluations: int) -> None:
    """Known numbers of 16 blocks, none protected."""
    configs = [without((8,) * 16, each) for each in combinations(range(16), size)]
    assert (len(configs), block_evaluations(configs)) == (sets, evaluations)


@few
@given(st.lists(st.integers(0, 2), min_size=1, max_size=8).filter(any), st.sets(st.integers(0, 7)), st.integers(0, 8))
def test_the_closed_form_is_the_enumeration(full: list[int], protected: set[int], most: int) -> None:
    free = free_blocks(tuple(full), {block for block in protected if block < len(full)})
    configs = [without(tuple(full), each) for each in subsets(free, min(most, len(free)))]
    assert subsets_cost(tuple(full), free, min(most, len(free))) == Cost.of(configs)


def test_the_closed_form_has_no_size_limit() -> None:
    cost = subsets_cost((8,) * 200, tuple(range(1, 199)), 198)
    assert cost.sets == 2**198
    assert cost.block_evaluations == 2**199


def test_costs_add_up() -> None:
    assert Cost(1, 2, 3) + Cost(10, 20, 30) == Cost(11, 22, 33)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (np.zeros(2), r"\[2, samples\], got \[2\]\. Measure"),
        (np.zeros((3, 4)), r"\[2, samples\], got \[3, 4\]"),
        (np.zeros((2, 0)), r"\[2, samples\], got \[2, 0\]"),
        ([[0.0, 1.0], [0.0, np.nan]], r"blocks \[1\] dropped sample 1 has nan \(1 of 4"),
        ([[0.0, -np.inf], [np.inf, np.nan]], r"blocks \[\] dropped sample 1 has -inf \(3 of 4"),
    ],
    ids=str,
)
def test_losses_that_cannot_be_compared(losses: Any, words: str) -> None:
    with pytest.raises(MeasureError, match=words):
        measured(lambda _: losses, [(8, 8), (8, 0)])


def test_losses_are_of_the_same_samples() -> None:
    found = measured(lambda _: np.ones((1, 3), np.float32), [(8, 8)], samples=3)
    assert (str(found.dtype), found.shape) == ("float64", (1, 3))
    with pytest.raises(MeasureError, match=r"\[1, 2\], got \[1, 3\]"):
        measured(lambda _: np.ones((1, 3)), [(8, 8)], samples=2)


def test_the_registry_imports_nothing_heavy() -> None:
    script = "import sys, importance.search; assert not {'torch', 'numpy'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == 0
