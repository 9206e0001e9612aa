"""Budget arithmetic against the published tilings and token counts, and what it refuses."""

import json
from fractions import Fraction
from typing import Any

import pytest

from tests.support.paths import FIXTURES
from transform.molmoe import tiling
from transform.molmoe.tiling import BudgetError


def records(name: str) -> list[dict[str, Any]]:
    return json.loads((FIXTURES / name).read_text())["records"]


@pytest.mark.parametrize(("tokens", "crops"), [(0, 1), (431, 1), (432, 2), (720, 4), (1008, 6), (1440, 9), (1872, 12)])
def test_documented_floor(tokens: int, crops: int) -> None:
    assert tiling.tokens_to_crops(tokens) == crops


def test_exact_tilings_of_both_rules() -> None:
    for record in records("tilings_exact.json"):
        size = (record["width"], record["height"])
        for n in range(1, 13):
            assert list(tiling.crops_to_tiling(n, size)) == record["log_canvas"][str(n)], (size, n)
            assert tiling.select_tiling(size[1], size[0], exact_num_crops=n) == tiling.crops_to_tiling(n, size)
            if n not in record["linear_exact_tie_at_n"]:  # there the reference's answer is its rounding
                assert list(tiling.crops_to_tiling(n, size, "linear")) == record["linear_original"][str(n)], (size, n)


def test_ties_take_the_fewest_rows() -> None:
    for n in range(1, 13):
        square = tiling.crops_to_tiling(n, 1.0)
        assert square[0] <= square[1]  # r x c and c x r are equally far from a square
    assert tiling.crops_to_tiling(3, (560, 336), "linear") == (1, 3)  # 5/3: 4/3 away from 3/1 and from 1/3
    assert tiling.crops_to_tiling(10, Fraction(1, 4), "linear") == tiling.crops_to_tiling(10, 0.25, "linear") == (5, 2)


def test_stock_tilings_for_every_max_crops() -> None:
    for record in records("preprocess_stock.json"):
        for most, expected in record["tiling_by_max_crops"].items():
            chosen = tiling.select_tiling(record["height"], record["width"], max_num_crops=int(most))
            assert list(chosen) == expected, (record["width"], record["height"], most)


def test_strips_below_the_margin_get_one_tile() -> None:
    assert tiling.select_tiling(100, 5000) == (1, 1)
    assert tiling.select_tiling(112, 5000) == (1, 12)  # a side of exactly the margin is no limit
    assert tiling.select_tiling(5000, 111) == (1, 1)


def test_stock_compares_in_float32() -> None:
    """A scale within half a float32 step of 1 counts as covering; no real size comes that near, windows may."""
    near = 2**26
    assert tiling.select_tiling(112 + near, 112 + near, crop_window_size=near - 1, max_num_crops=4) == (1, 1)
    assert tiling.select_tiling(112 + near, 112 + near, crop_window_size=near - 9, max_num_crops=4) == (2, 2)


def test_token_counts_of_every_record() -> None:
    for record in records("preprocess_stock.json") + records("preprocess_exact.json"):
        if "reference_error" not in record:
            shape = record["tiling_rows_cols"]
            assert tiling.patch_tokens(*shape) == record["n_im_patch"]
            assert tiling.image_tokens(*shape) == record["n_tokens"]
            assert list(tiling.tiling_to_resolution((shape[0], shape[1]))) == record["canvas_hw"]


def test_not_symmetric() -> None:
    assert tiling.image_tokens(2, 1) == 420
    assert tiling.image_tokens(1, 2) == 412
    assert tiling.worst_tiling([12]) == (12, 1)


def test_budget_that_fits() -> None:
    budget = tiling.check_budget(432, 4096)
    assert (budget.crops, budget.max_crops, budget.tilings) == (2, 2, ((1, 2), (2, 1)))
    exactly = 1 + tiling.image_tokens(2, 1) + 128
    assert tiling.check_budget(432, exactly).crops == 2
    with pytest.raises(BudgetError, match=rf"{exactly - 1} positions.* needs {exactly} .*fits is 288"):
        tiling.check_budget(432, exactly - 1)


@pytest.mark.parametrize(("tier", "most"), [("low", 3), ("medium", 8), ("high", 12)])
def test_tiers(tier: str, most: int) -> None:
    budget = tiling.check_budget(tier, 4096)
    assert (budget.crops, budget.max_crops, budget.worst) == (None, most, (most, 1))
    for size in [(640, 480), (480, 640), (1, 1), (4000, 300), (300, 4000)]:
        assert tiling.tier_tiling(tier, size) in budget.tilings
    with pytest.raises(BudgetError, match="positions"):
        tiling.check_budget(tier, tiling.image_tokens(most, 1) + 128)


def test_tiers_of_a_photo() -> None:
    assert [tiling.tier_tiling(t, (640, 480), "linear") for t in tiling.TIERS] == [(1, 1), (2, 3), (3, 4)]
    assert [tiling.tier_tiling(t, (1000, 1000)) for t in tiling.TIERS] == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (0, "from 288"),
        (144, "from 288"),
        (433, "432 and 576"),
        (10**40, "fits is 5328"),
        (5472, r"37×1.*fits is 5328"),
        (True, "multiple of 144"),
        (432.0, "multiple of 144"),
        ("huge", "low, medium, high"),
    ],
)
def test_refused_budgets(tokens: Any, words: str) -> None:
    with pytest.raises(BudgetError, match=words):
        tiling.check_budget(tokens, 4096)


def test_no_budget_fits() -> None:
    with pytest.raises(BudgetError, match="No vision budget"):
        tiling.check_budget(288, 400)


@pytest.mark.parametrize("aspect", [0.0, -1.0, float("nan"), float("inf"), (0, 5), (5, 0)])
def test_refused_aspects(aspect: Any) -> None:
    with pytest.raises(BudgetError, match="aspect"):
        tiling.crops_to_tiling(2, aspect)


@pytest.mark.parametrize(
    "call",
    [
        lambda: tiling.crops_to_tiling(0),
        lambda: tiling.crops_to_tiling(2, rule="square"),
        lambda: tiling.select_tiling(0, 5),
        lambda: tiling.select_tiling(5, 5, max_num_crops=0),
    ],
)
def test_refused_arguments(call: Any) -> None:
    with pytest.raises(BudgetError):
        call()


def test_primes_above_three_warn() -> None:
    better = {5: "tokens=720", 7: "tokens=1008", 11: "tokens=1872"}
    for n in range(1, 13):
        warning = tiling.budget_warning(n)
        assert (warning is not None) == (n in better)
        assert warning is None or better[n] in warning
