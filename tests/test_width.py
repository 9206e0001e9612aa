"""Sensitivity profiles, and allocations of a mean k: the best there are, compared with all of them."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from importance.allocation import Profile, allocate, k_option, predicted, profile_configs, sensitivity, uniform
from importance.configurations import Config, MeasureError
from transform.errors import KnobError
from transform.knobs import parse_k

few = settings(max_examples=60, deadline=None, derandomize=True)


def profile(full: Config, *increase: dict[int, float]) -> Profile:
    """With 0 at the full k, and no errors."""
    values = tuple({**each, k: 0.0} if k else {} for k, each in zip(full, increase, strict=True))
    return Profile(full, values, tuple(dict.fromkeys(each, 0.0) for each in values))


@st.composite
def profiles(draw: st.DrawFn, lowest: float = -1.0) -> Profile:
    """Up to four blocks with up to four values of k each; increases with ties, and some blocks dropped."""
    full = tuple(draw(st.lists(st.sampled_from([0, 1, 3, 8, 8]), min_size=1, max_size=4).filter(any)))
    value = st.sampled_from([0.0, 0.1, 0.2, 0.3]) | st.floats(lowest, 1e6)
    increase = [draw(st.dictionaries(st.integers(1, k - 1), value, max_size=3)) if k > 1 else {} for k in full]
    return profile(full, *increase)


def brute_force(of: Profile, budget: int, minimum: int = 1) -> Config | None:
    """The best of all allocations, by exact sums: smallest increase, most experts, more in earlier blocks."""
    options = [
        [k for k in values if k >= min(minimum, whole)] if whole else [0]
        for whole, values in zip(of.full, of.increase, strict=True)
    ]
    possible = [each for each in product(*options) if sum(each) <= budget]

    def rank(config: Config) -> tuple[Fraction, int, Config]:
        total = sum((Fraction(v[k]) for k, v in zip(config, of.increase, strict=True) if k), Fraction())
        return total, -sum(config), tuple(-k for k in config)

    return min(possible, key=rank, default=None)


def test_one_block_at_a_time() -> None:
    assert profile_configs((8, 0, 4, 1), [4, 2, 2]) == [(4, 0, 4, 1), (2, 0, 4, 1), (8, 0, 2, 1)]
    assert profile_configs((8, 8), [8]) == profile_configs((1, 1), (1,)) == []
    for wrong in ([0], [9], [2.0], [4, -1]):
        with pytest.raises(KnobError, match=r"from 1 to 8 \(the model's own\), got"):
            profile_configs((8, 0, 4), wrong)  # type: ignore[arg-type]
    with pytest.raises(KnobError, match="at least one above 0"):
        profile_configs((0, 0), [1])


def test_increases_are_paired() -> None:
    """Samples differ by 100, the increase by 1: paired, its standard error is that of 1, 2 and 3."""
    calls: list[Sequence[Config]] = []

    def measure(configs: Sequence[Config]) -> np.ndarray:
        calls.append(configs)
        return np.array([[100.0 * s + (config[0] != 8) * (s + 1.0) for s in range(3)] for config in configs])

    found = sensitivity(measure, (8, 0, 2), [4, 1])
    assert calls == [[(8, 0, 2), (4, 0, 2), (1, 0, 2), (8, 0, 1)]]
    assert found.full == (8, 0, 2)
    assert found.increase == ({8: 0.0, 4: 2.0, 1: 2.0}, {}, {2: 0.0, 1: 0.0})
    assert found.stderr[0][4] == pytest.approx(1 / math.sqrt(3))
    assert (found.stderr[0][8], found.stderr[1], found.stderr[2][1]) == (0.0, {}, 0.0)


def test_one_sample_says_nothing_about_the_error() -> None:
    found = sensitivity(lambda configs: np.ones((len(configs), 1)), (8, 8), [4])
    assert found.stderr[1] == {8: 0.0, 4: math.inf}


def test_losses_that_are_no_numbers() -> None:
    with pytest.raises(MeasureError, match="finite"):
        sensitivity(lambda configs: np.full((len(configs), 2), np.nan), (8, 8), [4])
    with pytest.raises(KnobError, match=r"0 at the full k, block 1 \(k=8\) has \{8: 1\.0\}"):
        Profile((8, 8), ({8: 0.0}, {8: 1.0}), ({}, {}))
    with pytest.raises(KnobError, match="finite"):
        profile((8, 8), {4: math.inf}, {})


@few
@given(profiles(), st.integers(1, 9), st.data())
def test_allocations_are_the_best_there_are(of: Profile, minimum: int, data: st.DataObject) -> None:
    blocks, whole = sum(map(bool, of.full)), sum(of.full)
    budget = data.draw(st.integers(0, whole))
    if minimum > max(of.full):
        with pytest.raises(KnobError, match="minimum must be"):
            allocate(of, budget / blocks, minimum=minimum)
        return
    best = brute_force(of, budget, minimum)
    if best is None:
        with pytest.raises(KnobError, match="mean k"):
            allocate(of, budget / blocks, minimum=minimum)
    else:
        assert allocate(of, budget / blocks, minimum=minimum) == best


@few
@given(profiles())
def test_more_experts_are_never_predicted_to_be_worse(of: Profile) -> None:
    blocks, least = sum(map(bool, of.full)), sum(min(values) for values in of.increase if values)
    found = [allocate(of, budget / blocks) for budget in range(least, sum(of.full) + 1)]
    exact = [sum(Fraction(v[k]) for k, v in zip(each, of.increase, strict=True) if k) for each in found]
    assert exact == sorted(exact, reverse=True)
    for budget, each in enumerate(found, least):
        assert sum(each) <= budget
        same = uniform(of, budget / blocks)
        assert sum(same) <= budget
        assert predicted(of, each) <= predicted(of, same) + 1e-9


@few
@given(profiles(lowest=0.0))
def test_the_full_budget_is_the_full_model(of: Profile) -> None:
    mean = sum(of.full) / sum(map(bool, of.full))
    assert allocate(of, mean) == uniform(of, mean) == of.full
    assert predicted(of, of.full) == 0.0


def test_experts_go_where_they_are_needed() -> None:
    of = profile((8,) * 4, {4: 0.5, 2: 0.9}, {4: 0.1, 2: 0.2}, {4: 0.0, 2: 0.1}, {4: 0.2, 2: 0.7})
    assert allocate(of, 8) == (8, 8, 8, 8)  # block 2 needs 4 only, but more cost nothing here
    assert allocate(of, 4) == (8, 2, 2, 4)
    assert k_option(allocate(of, 4)) == "8,2,2,4"
    assert parse_k(k_option(allocate(of, 4))) == (8, 2, 2, 4)
    assert predicted(of, allocate(of, 4)) == pytest.approx(0.5)
    assert predicted(of, uniform(of, 4)) == pytest.approx(0.8)
    assert allocate(of, 4, minimum=3) == (4, 4, 4, 4)
    assert allocate(of, 4, fixed={0: 2}) == (2, 4, 2, 8)  # (2, 2, 4, 8) is as good, but gives to the later block
    assert allocate(of, 4.9) == allocate(of, 4.5)  # 19.6 experts are 19, and 18 are as many as there can be


def test_ties_go_to_more_experts_and_to_earlier_blocks() -> None:
    flat = profile((8,) * 3, {4: 0.0}, {4: 0.0}, {4: 0.0})
    assert allocate(flat, 16 / 3) == (8, 4, 4)
    assert allocate(flat, 7.99) == (8, 8, 4)
    rounded = profile((8,) * 3, {4: 0.1}, {4: 0.2}, {4: 0.3})
    assert allocate(rounded, 20 / 3) == (4, 8, 8)
    sums = profile((8,) * 3, {4: 0.1 + 0.2}, {4: 0.3}, {4: 1.0})  # not equal: 0.1 + 0.2 is a little more
    assert allocate(sums, 20 / 3) == (8, 4, 8)


def test_dropped_and_dense_blocks() -> None:
    of = profile((1, 8, 0, 8), {}, {4: 0.2}, {}, {4: 0.1})
    assert allocate(of, 13 / 3) == (1, 8, 0, 4)
    assert k_option((1, 8, 0, 4)) == "1,8,4"
    assert allocate(of, 3, minimum=4) == uniform(of, 3) == (1, 4, 0, 4)
    assert uniform(of, 16 / 3) == (1, 4, 0, 4)  # 13 would fit, but isn't the same k everywhere
    dense = profile((1, 1), {}, {})
    assert allocate(dense, 1) == uniform(dense, 1.0) == (1, 1)


def test_a_mean_of_thirds_is_not_rounded_away() -> None:
    of = profile((8,) * 3, {5: 0.1}, {5: 0.1}, {6: 0.5})
    for mean in (16 / 3, 5.3333333333333):
        assert allocate(of, mean) == (5, 5, 6)
    assert allocate(profile((8,) * 100, *[{4: 1.0, 3: 2.0}] * 100), 4.35).count(3) == 1  # 435, not 434


def test_impossible_means() -> None:
    of = profile((8, 8, 8), {4: 0.1}, {4: 0.1}, {5: 0.1})
    for wrong in (4.33, 8.1, 0, -1, math.nan, math.inf):
        for choose in (allocate, uniform):
            with pytest.raises(
                KnobError, match=rf"3 blocks must be from 4\.3334 to 8\.0 \(sums 13 to 24\), got {wrong}"
            ):
                choose(of, wrong)
    assert allocate(of, 4.3334) == (4, 4, 5)
    with pytest.raises(KnobError, match=r"from 8\.0 to 8\.0"):
        allocate(of, 6, minimum=6)
    with pytest.raises(KnobError, match=r"from 5\.6667 to 8\.0"):
        allocate(of, 5, fixed={0: 8})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"minimum": 0}, r"minimum must be from 1 to 8 .*got 0\."),
        ({"minimum": 9}, r"got 9\."),
        ({"fixed": {1: 4}}, r"kept blocks \[0, 2\], got \[1\]"),
        ({"fixed": {3: 4}}, r"got \[3\]"),
        ({"fixed": {0: 3}}, r"block 0 was profiled at k=4, 8, fixed is 3\. Profile"),
    ],
    ids=str,
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(KnobError, match=words):
        allocate(profile((8, 0, 8), {4: 0.1}, {}, {4: 0.1}), 6, **options)


def test_only_what_was_profiled_is_predicted() -> None:
    of = profile((8, 0), {4: 0.1}, {})
    assert predicted(of, (4, 0)) == 0.1
    with pytest.raises(KnobError, match=r"block 0 was profiled at k=4, 8, got 3\."):
        predicted(of, (3, 0))
    with pytest.raises(KnobError, match=r"block 0 was profiled at k=4, 8, got 0\."):
        predicted(of, (0, 0))
    with pytest.raises(KnobError, match=r"block 1 was profiled at k=0, got 4\."):
        predicted(of, (4, 4))
