"""How many tokens pictures get under a pixel budget: the fewest and the most of all sizes, by aspect.

A large picture's grid depends on its aspect alone, so does a small one's, and all others' lie between the bounds.
Where both sides would be whole before they are rounded, floating point decides: such pictures are tried out.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache

from transform.architectures.pictures import Fit
from transform.errors import KnobError
from transform.pixel_budget import MOST_ASPECT, PixelBudget

ASPECT = 5  # a budget is kept by pictures up to 5:1 and 1:5
LONGEST_SIDE = 16_384  # pixels of the pictures that are tried out
RESERVE = 130  # tokens that must fit beside a picture: its start and end, and some text
MOST_TOKENS = 1 << 20  # of a picture: what counts them goes row by row
_ALWAYS_KEPT = 128  # and every larger budget: rounding up adds less than a quarter there


@cache
def least(budget: PixelBudget, aspect: int = ASPECT) -> int:
    """The fewest tokens of pictures up to this aspect."""
    ties = _ties(budget, Fraction(budget.tokens), aspect)
    return min(*_counts(budget, aspect), *(count for _, count in ties))


@cache
def most(budget: PixelBudget, aspect: int = ASPECT) -> int:
    """The most tokens of pictures up to this aspect."""
    ties = _ties(budget, _lower(budget), aspect)
    return max(*_counts(budget, aspect), *(count for _, count in ties))


@cache
def kept_to(budget: PixelBudget) -> float:
    """The aspect below which no picture has more tokens than the budget; MOST_ASPECT: none has."""
    tokens, area = budget.tokens, _lower(budget)
    beyond: list[Fraction] = [Fraction((tokens + 1) ** 2, tokens)]
    for rows in range(1, _ceil_root(area) + 1):
        start: Fraction = max(Fraction(1), area / rows**2, Fraction((tokens // rows) ** 2) / area)
        if rows == 1 or start < area / (rows - 1) ** 2:
            beyond.append(start)
    beyond += [aspect for aspect, count in _ties(budget, area, MOST_ASPECT) if count > tokens]
    return min(float(min(beyond) / _stretched(budget)), MOST_ASPECT)


def check_budget(budget: PixelBudget, positions: int) -> None:
    """Raise KnobError for a budget that pictures up to ASPECT pass, or that doesn't fit a model of so many positions
    together with RESERVE."""
    tokens = budget.tokens
    if tokens < 1:
        raise KnobError(f"vision tokens must be a whole number from 1, got {tokens}. Give for example 256.")
    if tokens + RESERVE > positions:
        fitting = positions - RESERVE
        raise KnobError(
            f"a picture and {RESERVE} other tokens must fit the model's {positions} positions, got tokens={tokens}. "
            + (f"The largest budget that fits is {fitting}." if fitting > 0 else "No vision budget fits this model.")
        )
    if tokens > MOST_TOKENS:
        raise KnobError(
            f"a picture must have at most {MOST_TOKENS:,} tokens, got tokens={tokens}. Give for example 256."
        )
    if (largest := most(budget)) > tokens:
        larger = (_of(budget, n) for n in range(tokens + 1, _ALWAYS_KEPT + 1))
        kept = next(other.tokens for other in larger if most(other) <= other.tokens)
        raise KnobError(
            f"a picture up to {ASPECT}:1 must keep to its budget: with tokens={tokens} the processor's rounding gives "
            f"up to {largest}. The next budget that is kept is {kept}."
        )


def _of(budget: PixelBudget, tokens: int) -> PixelBudget:
    return PixelBudget(tokens, budget.side, budget.fit, budget.frames)


def _lower(budget: PixelBudget) -> Fraction:
    """The lower bound in tokens."""
    return Fraction(3 * budget.tokens, 4)


def _stretched(budget: PixelBudget) -> Fraction:
    """How much narrower a tiny picture may get that is enlarged to whole pixels first."""
    return Fraction(budget.side, budget.side - 1) if budget.fit is Fit.CLIP and budget.side > 1 else Fraction(1)


def _counts(budget: PixelBudget, aspect: int) -> Iterator[int]:
    """Tokens of the smallest and largest grids of each number of rows, of pictures from 1:1 to the aspect."""
    end = aspect * _stretched(budget)
    area = Fraction(budget.tokens)
    for rows in range(math.isqrt(budget.tokens) + 1):  # of large pictures
        first, last = max(Fraction(1), area / (rows + 1) ** 2), min(end, area / rows**2) if rows else end
        if first <= last:
            yield from (max(1, rows) * max(1, _floor_root(area * at)) for at in (first, last))
    area = _lower(budget)
    for rows in range(1, _ceil_root(area) + 1):  # of small ones
        first, last = max(Fraction(1), area / rows**2), min(end, area / (rows - 1) ** 2) if rows > 1 else end
        if first < last or first == last == end:
            yield from (rows * _ceil_root(area * at) for at in (first, last))


def _ties(budget: PixelBudget, area: Fraction, aspect: int) -> Iterator[tuple[Fraction, int]]:
    """(aspect, tokens) of pictures both of whose sides make whole tokens at this area, `budget.tokens` where they are
    made smaller or the lower bound. A picture twice as large is rounded alike."""
    if area.denominator != 1:
        return
    shapes = {(i, int(area) // i) for i in range(1, math.isqrt(int(area)) + 1) if area % i == 0}
    for shorter, longer in sorted(shapes):
        if longer > aspect * shorter:
            continue
        divisor = math.gcd(shorter, longer)
        for size in _sizes(budget, shorter // divisor, longer // divisor, area < budget.tokens):
            for height, width in {size, size[::-1]}:
                yield Fraction(longer, shorter), budget.count(height, width)


def _sizes(budget: PixelBudget, shorter: int, longer: int, small: bool) -> Iterator[tuple[int, int]]:
    """Sides of pictures of one shape, odd multiples of it; twice as often as it takes to be large, or while small."""
    for odd in range(1, LONGEST_SIDE // longer + 1, 2):
        times = odd
        if small and budget.frames * times**2 * shorter * longer > 2 * budget.shortest_edge:
            return
        while not small and budget.frames * times**2 * shorter * longer < 2 * budget.longest_edge:
            times *= 2
        yield times * shorter, times * longer


def _floor_root(value: Fraction) -> int:
    return math.isqrt(value.numerator // value.denominator)


def _ceil_root(value: Fraction) -> int:
    root = _floor_root(value)
    return root if root * root == value else root + 1
