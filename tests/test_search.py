"""The searches over sets: on random objectives, where nothing adds up, and where everything does."""

from collections.abc import Callable, Sequence
from itertools import combinations, permutations
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
    without,
)
from importance.search import STRATEGIES, Strategy, exact, expected_cost, strategy
from importance.search.found import Choice, Found, Task, best_chain
from importance.search.top_k import keep_top_k
from transform.errors import KnobError, ScoresError

NAMES = [each.name for each in STRATEGIES]
few = settings(max_examples=40, deadline=None, derandomize=True)
each_strategy = pytest.mark.parametrize("each", STRATEGIES, ids=lambda s: s.name)


class Objective:
    """Losses [configurations, samples] by a function of the configuration; remembers the calls."""

    def __init__(self, row: Callable[[Config], Sequence[float]]) -> None:
        self.row = row
        self.calls: list[list[Config]] = []

    def __call__(self, configs: Sequence[Config]) -> np.ndarray:
        self.calls.append(list(configs))
        return np.array([self.row(config) for config in configs], np.float64)

    @property
    def cost(self) -> Cost:
        return sum((Cost.of(call) for call in self.calls), Cost())


def rough(seed: int, levels: int = 1000, samples: int = 3) -> Objective:
    """Any loss for any configuration; few levels make ties."""
    return Objective(lambda config: np.random.default_rng([seed, *config]).integers(0, levels, samples).tolist())


def additive(weights: Sequence[int]) -> Objective:
    return Objective(lambda config: [float(sum(weights[block] for block in dropped(config)))] * 2)


def search(name: str, measure: Any, full: Config, max_drop: int, **options: Any) -> Found:
    found: Found = strategy(name).search(measure, full, max_drop, **options)
    return found


def losses(found: Found) -> list[float]:
    return [choice.loss for choice in found.best]


def sets(found: Found) -> list[tuple[int, ...]]:
    return [choice.dropped for choice in found.best]


def mean(objective: Objective, full: Config, chosen: tuple[int, ...]) -> float:
    return float(np.mean(objective.row(without(full, chosen))))


def brute_force(objective: Objective, full: Config, free: tuple[int, ...], most: int) -> list[tuple[int, ...]]:
    """The best set of every size, ties to the lexicographically smallest."""
    return [
        min(combinations(free, size), key=lambda each: (mean(objective, full, each), each))
        for size in range(1, most + 1)
    ]


@st.composite
def problems(draw: st.DrawFn, longest: int = 6) -> tuple[Objective, Config, int, frozenset[int] | None]:
    """(objective, full, max_drop, protected): up to `longest` blocks, some of them dropped before."""
    full = tuple(draw(st.lists(st.sampled_from([0, 1, 8, 8]), min_size=1, max_size=longest).filter(any)))
    protected = draw(st.none() | st.frozensets(st.integers(0, len(full) - 1)))
    most = min(len(free_blocks(full, protected)), sum(map(bool, full)) - 1)
    objective = rough(draw(st.integers(0, 2**32)), draw(st.sampled_from([3, 1000])))
    return objective, full, draw(st.integers(0, most)), protected


@few
@given(problems())
def test_exact_is_no_worse_than_beam_and_beam_no_worse_than_greedy(problem: Any) -> None:
    objective, full, most, protected = problem
    greedy = search("greedy", objective, full, most, protected=protected)
    best = search("exact", objective, full, most, protected=protected)
    for width in (1, 2, 3):
        beam = search("beam", objective, full, most, protected=protected, width=width)
        assert all(ours <= theirs for ours, theirs in zip(losses(beam), losses(greedy), strict=True))
        assert all(ours <= theirs for ours, theirs in zip(losses(best), losses(beam), strict=True))
    once = search("one_shot", objective, full, most, protected=protected)
    assert all(ours <= theirs for ours, theirs in zip(losses(best), losses(once), strict=True))
    assert greedy.nested


def test_the_greedy_chain_stays_in_the_beam() -> None:
    """Two sets of two are better than greedy's, so it would leave a beam of two; its set of three is the best."""
    low = {(1,): 1, (1, 2): 3, (3, 4): 1, (3, 5): 2, (1, 2, 6): 0, (3,): 2}
    objective = Objective(lambda config: [low.get(dropped(config), 9)])
    assert sets(search("greedy", objective, (8,) * 8, 3)) == [(1,), (1, 2), (1, 2, 6)]
    assert sets(search("beam", objective, (8,) * 8, 3, width=2)) == [(1,), (3, 4), (1, 2, 6)]


@few
@given(problems())
def test_exact_is_brute_force(problem: Any) -> None:
    objective, full, most, protected = problem
    found = search("exact", objective, full, most, protected=protected)
    assert sets(found) == brute_force(objective, full, free_blocks(full, protected), most)


@few
@given(problems(longest=5))
def test_the_best_chain_is_brute_force(problem: Any) -> None:
    objective, full, most, protected = problem
    found = search("exact", objective, full, most, protected=protected, nested=True)
    orders = permutations(free_blocks(full, protected), most)
    chains = ([mean(objective, full, order[:size]) for size in range(1, most + 1)] for order in orders)
    assert sum(losses(found)) == pytest.approx(min(map(sum, chains)))
    assert found.nested
    assert losses(found) == [mean(objective, full, each) for each in sets(found)]
    beam = search("beam", objective, full, most, protected=protected, nested=True)
    greedy = search("greedy", objective, full, most, protected=protected, nested=True)
    assert beam.nested
    assert sum(losses(found)) <= sum(losses(beam)) + 1e-9 <= sum(losses(greedy)) + 2e-9


def test_a_chain_may_pass_over_the_best_sets() -> None:
    low = {(1,): 1, (2,): 2, (3,): 9, (1, 2): 9, (1, 3): 9, (2, 3): 3}
    objective = Objective(lambda config: [low.get(dropped(config), 0)])
    assert sets(search("exact", objective, (8,) * 5, 2)) == [(1,), (2, 3)]
    found = search("exact", objective, (8,) * 5, 2, nested=True)
    assert sets(found) == [(2,), (2, 3)]
    assert len(objective.calls) == 3  # two searches, and the losses of (2,), which were not kept
    assert found.cost == Cost.of(objective.calls[1]) + Cost.of(objective.calls[2])
    assert best_chain({(): 5.0, (1,): 1.0, (2,): 1.0, (1, 2): 0.0}, 2) == ((1,), (1, 2))
    assert best_chain({(): 5.0}, 0) == ()


@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.booleans(), st.data())
def test_where_blocks_add_up_all_agree(weights: list[int], nested: bool, data: st.DataObject) -> None:
    full = (8,) * len(weights)
    most = data.draw(st.integers(0, len(weights) - 1))
    found = [
        search(name, additive(weights), full, most, protected=frozenset(), nested=nested)
        for name in NAMES
        if name != "window"
    ]
    assert all(sets(each) == sets(found[0]) for each in found)
    assert all(each.nested for each in found)


@each_strategy
@few
@given(problem=problems())
def test_what_every_search_promises(each: Strategy, problem: Any) -> None:
    objective, full, most, protected = problem
    free = free_blocks(full, protected)
    told: list[int] = []
    options = {"protected": protected, "progress": told.append, "width": 2}
    try:
        expected = expected_cost(each.name, full, most, protected, 2)
    except KnobError as error:
        assert each.name == "window" and "neighbouring" in str(error)
        return
    found = each.search(objective, full, most, **options)
    assert (found.strategy, found.full, found.baseline.dropped) == (each.name, full, ())
    assert [len(chosen) for chosen in sets(found)] == list(range(1, most + 1))
    assert all(set(chosen) <= set(free) and list(chosen) == sorted(chosen) for chosen in sets(found))
    for choice in (found.baseline, *found.best):
        assert choice.losses.tolist() == objective.row(without(full, choice.dropped))
        assert choice.loss == float(choice.losses.mean())
        assert not choice.losses.flags.writeable
    assert [found.config(size) for size in range(most + 1)] == [without(full, chosen) for chosen in ((), *sets(found))]
    assert found.cost == objective.cost
    assert sum(told) == found.cost.sets
    assert found.cost.sets <= expected.sets
    assert found.cost.block_evaluations <= expected.block_evaluations
    assert found.cost.naive_block_evaluations <= expected.naive_block_evaluations
    assert len(objective.calls) == each.passes(Task.of(full, most, protected, 2, False))
    asked = [config for call in objective.calls for config in call]
    assert len(asked) == len(set(asked)), "without nested, no set is measured twice"
    again = each.search(rough(0), full, most, **options)
    assert again == each.search(rough(0), full, most, **options)


@each_strategy
@few
@given(problem=problems())
def test_a_nested_search_stays_within_its_cost(each: Strategy, problem: Any) -> None:
    objective, full, most, protected = problem
    if each.name == "window" and protected:
        return
    expected = expected_cost(each.name, full, most, protected, nested=True)
    found = each.search(objective, full, most, protected=protected, nested=True)
    assert found.nested
    assert losses(found) == [mean(objective, full, chosen) for chosen in sets(found)]
    assert found.cost == objective.cost
    assert found.cost.sets <= expected.sets
    assert found.cost.block_evaluations <= expected.block_evaluations
    assert len(objective.calls) <= each.passes(Task.of(full, most, protected, 3, True))


@pytest.mark.parametrize("max_drop", [0, 1, 4, 14])
@pytest.mark.parametrize("name", ["window", "greedy", "exact"])
def test_costs_known_before_the_search(name: str, max_drop: int) -> None:
    if (name, max_drop) == ("exact", 14):
        assert expected_cost(name, (8,) * 16, 14) == Cost(16_384, 32_768, 147_456)
        return
    found = search(name, rough(1), (8,) * 16, max_drop)
    assert found.cost == expected_cost(name, (8,) * 16, max_drop)


def test_costs_are_counted_as_documented() -> None:
    """One level of greedy on 16 blocks, none protected: 136 block evaluations instead of 256, with the full model."""
    assert expected_cost("greedy", (8,) * 16, 1, ()) == Cost(17, 136, 256)
    assert expected_cost("greedy", (8,) * 16, 2, ()) == Cost(32, 136 + 119, 256 + 15 * 14)
    assert expected_cost("exact", (8,) * 80, 78).sets == 2**78
    assert expected_cost("beam", (8,) * 16, 14, width=1) == expected_cost("greedy", (8,) * 16, 14)
    assert expected_cost("beam", (8,) * 16, 14, width=10_000).sets == 2**14  # more than there are


@pytest.mark.parametrize("measured_first", [True, False])
def test_one_shot_ranks_once(measured_first: bool) -> None:
    objective = additive([0, 3, 1, 2, 9])
    scores = None if measured_first else {1: 0.3, 2: 0.1, 3: 0.2}
    found = search("one_shot", objective, (8,) * 5, 3, scores=scores)
    assert sets(found) == [(2,), (2, 3), (1, 2, 3)]
    assert len(objective.calls) == (2 if measured_first else 1)
    assert found.cost.sets == (6 if measured_first else 4)


def test_one_shot_by_scores_drops_what_top_k_does() -> None:
    scores = {1: 0.5, 2: 0.1, 3: 0.1, 4: 0.1}
    found = search("one_shot", rough(0), (8,) * 6, 3, scores=scores)
    for size, chosen in enumerate(sets(found), 1):
        assert set(chosen) == set(range(6)) - set(keep_top_k(scores, 6 - size, 6))
    with pytest.raises(ScoresError, match="1 have none: 3"):
        search("one_shot", rough(0), (8,) * 6, 3, scores={1: 0.5, 2: 0.1, 4: 0.1})
    assert sets(search("one_shot", rough(0), (8, 8, 0, 8), 1, scores={1: 0.5})) == [(1,)]


def test_windows_are_neighbours() -> None:
    weights = [0, 5, 0, 9, 1, 1, 7, 0]
    found = search("window", additive(weights), (8,) * 8, 3)
    assert sets(found) == [(2,), (4, 5), (4, 5, 6)]
    assert sets(search("window", additive(weights), (8,) * 8, 3, nested=True)) == [(4,), (4, 5), (4, 5, 6)]
    # a dropped block is no gap, a protected one is
    assert sets(search("window", additive(weights), (8, 8, 8, 0, 8, 8, 8, 8), 2)) == [(2,), (2, 4)]
    with pytest.raises(KnobError, match=r"at most 3 here, got max_drop=4\. Lower"):
        search("window", additive(weights), (8,) * 8, 4, protected=frozenset({0, 4, 7}))


def test_ties_go_to_the_smallest_set() -> None:
    flat = Objective(lambda _: [1.0, 1.0])
    for name in NAMES:
        for nested in (False, True):
            assert sets(search(name, flat, (8,) * 6, 3, nested=nested)) == [(1,), (1, 2), (1, 2, 3)], name


@each_strategy
@pytest.mark.parametrize(
    ("full", "options", "most"),
    [
        ((8,), {}, 0),
        ((8, 8), {}, 0),
        ((8, 8, 8), {}, 1),
        ((8,), {"protected": frozenset()}, 0),
        ((8, 8), {"protected": frozenset()}, 1),
        ((1, 1, 1), {"protected": frozenset()}, 2),
        ((8, 0, 8, 8), {}, 1),
        ((0, 8, 8, 0), {"protected": frozenset()}, 1),
    ],
)
def test_small_models_and_the_range_of_max_drop(each: Strategy, full: Config, options: Any, most: int) -> None:
    for max_drop in range(most + 1):
        assert len(each.search(rough(0), full, max_drop, **options).best) == max_drop
    for wrong in (most + 1, -1, 1.0, True):
        objective = rough(0)
        with pytest.raises(KnobError, match=rf"from 0 to {most} \(.*got {wrong!r}\. Choose"):
            each.search(objective, full, wrong, **options)
        assert not objective.calls


@each_strategy
def test_nothing_to_drop_is_the_full_model(each: Strategy) -> None:
    found = each.search(rough(0), (8,) * 4, 0)
    assert (found.best, found.cost, found.nested) == ((), Cost(1, 4, 4), True)
    assert found.config(0) == (8,) * 4


@each_strategy
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_losses_that_are_no_numbers(each: Strategy, wrong: float) -> None:
    objective = Objective(lambda config: [1.0, wrong if dropped(config) == (1, 2) else 1.0])
    with pytest.raises(MeasureError, match=rf"blocks \[1, 2\] dropped sample 1 has {wrong}"):
        each.search(objective, (8,) * 4, 2)


@each_strategy
def test_options_are_checked(each: Strategy) -> None:
    with pytest.raises(TypeError, match="widht"):
        each.search(rough(0), (8,) * 4, 1, widht=3)
    with pytest.raises(KnobError, match="width=0"):
        each.search(rough(0), (8,) * 4, 1, width=0)
    with pytest.raises(KnobError, match=r"protected.*got 4\."):
        each.search(rough(0), (8,) * 4, 1, protected=frozenset({4}))


@pytest.mark.parametrize("name", ["one_shot", "greedy", "beam"])
def test_every_call_measures_the_same_samples(name: str) -> None:
    samples = iter([2, 1])
    with pytest.raises(MeasureError, match=r"\[\d, 2\], got \[\d, 1\]"):
        search(name, lambda configs: np.ones((len(configs), next(samples))), (8,) * 4, 2)


def test_losses_are_copied() -> None:
    """A measure may use its memory again."""
    buffer = np.empty((6, 2))

    def measure(configs: Sequence[Config]) -> np.ndarray:
        buffer[:] = len(configs)
        return buffer[: len(configs)]

    found = search("greedy", measure, (8,) * 6, 3)
    assert [choice.losses.tolist() for choice in (found.baseline, *found.best)] == [[5, 5], [5, 5], [3, 3], [2, 2]]


def test_exact_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    one, chain = (search("exact", rough(3), (8,) * 8, 4, nested=nested) for nested in (False, True))
    monkeypatch.setattr(exact, "CALL_SETS", 10)
    objective = rough(3)
    several = search("exact", objective, (8,) * 8, 4)
    assert several.best == one.best != chain.best
    assert max(map(len, objective.calls)) == 10
    asked = [config for call in objective.calls for config in call]
    assert asked == sorted(set(asked), reverse=True), "depth first, across calls"
    assert len(objective.calls) == strategy("exact").passes(Task.of((8,) * 8, 4, None, 3, False)) > 1
    assert several.cost.block_evaluations <= expected_cost("exact", (8,) * 8, 4).block_evaluations
    assert several.cost.block_evaluations < block_evaluations(asked) + 6 * 8
    assert search("exact", rough(3), (8,) * 8, 4, nested=True).best == chain.best


def test_exact_refuses_more_than_a_million_sets() -> None:
    objective = rough(0)
    with pytest.raises(
        KnobError, match=r"at most 1,000,000: up to 12 of 28 blocks are 76,717,268 sets\. Lower .* to 6 or"
    ):
        search("exact", objective, (8,) * 30, 12)
    assert not objective.calls


def test_strategies_by_name() -> None:
    assert NAMES == ["one_shot", "window", "greedy", "beam", "exact"]
    assert all(each.effect and each.ref for each in STRATEGIES)
    with pytest.raises(KnobError, match="one_shot, window, greedy, beam, exact, got 'best'"):
        strategy("best")
    with pytest.raises(KnobError, match="from 0 to 2"):
        expected_cost("beam", (8,) * 4, 3)


def test_choices_compare_by_set_and_loss() -> None:
    assert Choice.of((1,), 2.0, np.array([1.0, 3.0])) == Choice.of((1,), 2.0, np.array([2.0, 2.0]))
