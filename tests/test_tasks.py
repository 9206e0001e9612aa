"""When two answers are the same, and how sure an accuracy is."""

import math

import pytest

from importance.tasks import METRICS, exact_match, normalise, standard_error, wilson


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Grey.", "grey"),
        ("  the\tRed  circle\n", "red circle"),
        ("A red one!", "red 1"),
        ("two", "2"),
        ("TEN", "10"),
        ("None", "0"),
        ("someone", "someone"),
        ("top-left", "top left"),
        ("don't", "dont"),
        ("don’t", "dont"),
        ("3.5", "3.5"),
        ("3. 5.", "3 5"),
        ("-5", "-5"),
        ("3-5", "3 5"),
        ("1,000,000 dogs", "1000000 dogs"),
        ("1,2", "1 2"),
        ("$5", "5"),
        ("snake_case", "snake case"),
        ("１２", "12"),  # full-width digits
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("हिन्दी।", "हिन्दी"),
        ("A", "a"),  # an option's letter, not an article
        ("the", "the"),
        ("?", "?"),
        ("", ""),
    ],
)
def test_normalise(text: str, plain: str) -> None:
    assert normalise(text) == plain
    assert normalise(plain) == plain


def test_any_accepted_answer_counts() -> None:
    assert exact_match("Two.", ["3", "2"]) == 1.0
    assert exact_match("grey", ["gray", "grey"]) == 1.0
    assert exact_match("grey cat", ["grey"]) == 0.0
    assert exact_match("-5", ["5"]) == 0.0
    assert exact_match("", ["a"]) == 0.0
    assert METRICS["exact_match"] is exact_match


def test_standard_error_of_right_and_wrong() -> None:
    assert standard_error([1, 0, 1, 1]) == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert standard_error([1.0] * 7) == 0
    assert standard_error([0.5]) == 0
    assert standard_error([0.0, 0.3, 0.6]) == pytest.approx(math.sqrt(0.06 / 3))


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [(0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.9, 50, 0.7864, 0.9565)],
)
def test_wilson_interval(share: float, n: int, low: float, high: float) -> None:
    assert wilson(share, n) == pytest.approx((low, high), abs=1e-4)
