"""Token budget arithmetic of Molmo's image side: budget -> crops -> tiling -> canvas -> tokens.

Integers and the standard library only. A tiling is (rows r, columns c) of overlapping 336 px tiles; one global view
comes on top. A budget is nominal, (crops + 1) * 144, which is the encoder's work; the sequence holds
144 + (8r+4)(8c+4) image patches, because overlaps are dropped. Pixels are not this file's business.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

CROP = 336  # pixels of a crop's side
PATCH = 14
MARGIN = 112  # pixels of both overlap margins together
WINDOW = CROP - MARGIN  # pixels by which tiles advance
PATCHES = CROP // PATCH  # 24 patches a side
FEATURES = PATCHES // 2  # 12 pooled features a side
TOKENS_PER_CROP = FEATURES * FEATURES
STEP = WINDOW // PATCH // 2  # 8 pooled features by which tiles advance
TEXT_RESERVE = 128  # tokens which must fit beside BOS and the image

RULES = ("canvas", "linear")
# Crop counts a tier chooses from. 5, 7 and 11 are left out: strips only, more tokens than their better neighbours.
TIERS = {"low": (1, 2, 3), "medium": (4, 6, 8), "high": (9, 10, 12)}

Tiling = tuple[int, int]  # (rows, columns)


class BudgetError(ValueError):
    """A vision token budget which no tiling, or not this model, can have."""


@dataclass(frozen=True)
class Budget:
    """A fixed budget: the nominal tokens or the tier's name, and the crop counts it allows (without global view)."""

    tokens: int | str
    counts: tuple[int, ...]

    @property
    def crops(self) -> int | None:
        """The one crop count, or None for a tier, which has several."""
        return self.counts[0] if len(self.counts) == 1 else None

    @property
    def max_crops(self) -> int:
        """The most crops an image can get."""
        return max(self.counts)

    @property
    def tilings(self) -> tuple[Tiling, ...]:
        """Every tiling an image can get, by crops, then rows."""
        return tuple(t for n in self.counts for t in tilings(n))

    @property
    def worst(self) -> Tiling:
        """The tiling with the longest image stream: the tallest one, for tall tilings have more column tokens."""
        return worst_tiling(self.counts)


def tokens_to_crops(target_tokens: int) -> int:
    """Nominal budget -> crops, rounded down and at least 1, as documented; `parse_budget` is the strict form."""
    return max(target_tokens // TOKENS_PER_CROP - 1, 1)


def tilings(crops: int) -> tuple[Tiling, ...]:
    """All (rows, columns) of exactly `crops` tiles, fewest rows first."""
    if isinstance(crops, bool) or not isinstance(crops, int) or crops < 1:
        raise BudgetError(f"The number of crops must be a whole number from 1, got {crops!r}.")
    return tuple((r, crops // r) for r in range(1, crops + 1) if crops % r == 0)


def crops_to_tiling(n: int, aspect: float | Fraction | tuple[int, int] = 1.0, rule: str = "canvas") -> Tiling:
    """The tiling of exactly `n` crops nearest to an aspect = width / height, given as a number or a (w, h) pair.

    `canvas` compares with the canvas that letterboxing fills: least |ln((2c+1)/(2r+1)) - ln(w/h)|; `linear` is the
    documented rule, least |c/r - w/h|. Both are decided in exact arithmetic; on ties the fewest rows win.
    """
    return _nearest(tilings(n), aspect, rule)


def tier_tiling(tier: str, aspect: float | Fraction | tuple[int, int], rule: str = "canvas") -> Tiling:
    """The tiling nearest to the aspect among all of a tier; on ties the fewest crops, then the fewest rows."""
    return _nearest([t for n in TIERS[tier] for t in tilings(n)], aspect, rule)


def _nearest(candidates: Iterable[Tiling], aspect: float | Fraction | tuple[int, int], rule: str) -> Tiling:
    if rule not in RULES:
        raise BudgetError(f"The tiling rule must be one of {', '.join(RULES)}, got {rule!r}.")
    try:
        exact = Fraction(*aspect) if isinstance(aspect, tuple) else Fraction(aspect)
    except (ValueError, OverflowError, ZeroDivisionError, TypeError):
        exact = Fraction(0)
    if exact <= 0:
        raise BudgetError(f"The aspect, width / height, must be a finite number above 0, got {aspect!r}.")

    def distance(tiling: Tiling) -> Fraction:
        rows, columns = tiling
        if rule == "linear":
            return abs(Fraction(columns, rows) - exact)
        ratio = Fraction(2 * columns + 1, 2 * rows + 1) / exact
        return max(ratio, 1 / ratio)  # |ln ratio| grows with this

    return min(candidates, key=distance)  # min keeps the first of equals


def select_tiling(
    original_h: int,
    original_w: int,
    crop_window_size: int = WINDOW,
    max_num_crops: int = 12,
    exact_num_crops: int | None = None,
    rule: str = "canvas",
) -> Tiling:
    """The tiling of one image, from its own size. Stock, with `exact_num_crops` None: of all tilings of at most
    `max_num_crops` crops the one that upscales least, or else downscales least. With `exact_num_crops`, which then
    overrules `max_num_crops`: `crops_to_tiling` of the image's aspect.
    """
    if min(original_h, original_w) < 1:
        raise BudgetError(f"An image's sides must be at least 1 pixel, got {original_w}×{original_h}.")
    if exact_num_crops is not None:
        return crops_to_tiling(exact_num_crops, (original_w, original_h), rule)
    if max_num_crops < 1:
        raise BudgetError(f"max_crops must be at least 1, got {max_num_crops}.")
    sides = (original_h - MARGIN, original_w - MARGIN)

    def scale(tiling: Tiling) -> float:
        # a side of exactly the margin is no limit; one below it makes the scale negative, hence 1x1 in the end
        return min(
            _float32(crop_window_size * tiles / side) if side else float("inf")
            for tiles, side in zip(tiling, sides, strict=True)
        )

    scaled = [(scale(t), t) for n in range(1, max_num_crops + 1) for t in tilings(n)]
    covering = [pair for pair in scaled if pair[0] >= 1]
    if covering:
        return min(covering, key=lambda pair: pair[0])[1]
    return max(scaled, key=lambda pair: pair[0])[1]


def _float32(value: float) -> float:
    """Rounded as the reference's float32 division: the quotient of small integers survives the detour by float64."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def tiling_to_resolution(tiling: Tiling, crop_window_size: int = WINDOW, total_margin_pixels: int = MARGIN) -> Tiling:
    """(rows, columns) -> (height, width) of the canvas in pixels."""
    rows, columns = tiling
    return rows * crop_window_size + total_margin_pixels, columns * crop_window_size + total_margin_pixels


def grid(rows: int, columns: int) -> tuple[int, int]:
    """Height and width in features of the tiled view, every overlap counted once."""
    return STEP * rows + 4, STEP * columns + 4


def patch_tokens(rows: int, columns: int) -> int:
    """Image patches in the sequence: the global view and the tiled view."""
    height, width = grid(rows, columns)
    return TOKENS_PER_CROP + height * width


def image_tokens(rows: int, columns: int) -> int:
    """The whole image stream: patches, a column token per row, start and end of both views; without BOS."""
    height, width = grid(rows, columns)
    return FEATURES * (FEATURES + 1) + height * (width + 1) + 4


def worst_tiling(counts: Iterable[int]) -> Tiling:
    """Of all tilings of these crop counts the one with the longest image stream."""
    return max((t for n in counts for t in tilings(n)), key=lambda t: image_tokens(*t))


def parse_budget(tokens: int | str) -> Budget:
    """A multiple of 144 from 288 up, or a tier; raises BudgetError for anything else."""
    if isinstance(tokens, str):
        if tokens not in TIERS:
            raise BudgetError(f"A vision budget in words must be one of {', '.join(TIERS)}, got {tokens!r}.")
        return Budget(tokens, TIERS[tokens])
    rule = f"Vision tokens must be a multiple of {TOKENS_PER_CROP} from {2 * TOKENS_PER_CROP} up"
    if isinstance(tokens, bool) or not isinstance(tokens, int):
        raise BudgetError(f"{rule}, or {', '.join(TIERS)}, got {tokens!r}.")
    if tokens < 2 * TOKENS_PER_CROP:
        raise BudgetError(
            f"{rule} (the global view and one crop), got {tokens}. The smallest budget is {2 * TOKENS_PER_CROP}."
        )
    if tokens % TOKENS_PER_CROP:
        below = tokens // TOKENS_PER_CROP * TOKENS_PER_CROP
        raise BudgetError(f"{rule}, got {tokens}. The neighbours are {below} and {below + TOKENS_PER_CROP}.")
    return Budget(tokens, (tokens // TOKENS_PER_CROP - 1,))


def check_budget(tokens: int | str, max_sequence_length: int) -> Budget:
    """`parse_budget`, and BOS, the longest image stream and 128 tokens of text must fit the model's sequence."""
    if isinstance(tokens, int) and tokens > TOKENS_PER_CROP * (max_sequence_length + 1):
        # every crop adds tokens to the sequence, so this can't fit; looking for its divisors could take forever
        longest, shape = "far more", ""
    else:
        budget = parse_budget(tokens)
        rows, columns = budget.worst
        needed = _needed(budget.counts)
        if needed <= max_sequence_length:
            return budget
        longest, shape = str(needed), f" for {rows}×{columns} tiles, {image_tokens(rows, columns)} of them the image"
    fitting = 0
    while _needed((fitting + 1,)) <= max_sequence_length:
        fitting += 1
    way_out = (
        f"The largest budget that fits is {(fitting + 1) * TOKENS_PER_CROP}."
        if fitting
        else "No vision budget fits this model."
    )
    raise BudgetError(
        f"BOS, the image and {TEXT_RESERVE} tokens of text must fit the model's {max_sequence_length} positions: "
        f"tokens={tokens} needs {longest}{shape}. {way_out}"
    )


def _needed(counts: Iterable[int]) -> int:
    return 1 + image_tokens(*worst_tiling(counts)) + TEXT_RESERVE


def budget_warning(crops: int) -> str | None:
    """What is wrong with a crop count that is a prime above 3, and the better budget; None for all others."""
    if crops <= 3 or len(tilings(crops)) > 2:
        return None
    cost = patch_tokens(1, crops)

    def squarest(n: int) -> Tiling:
        return max((t for t in tilings(n) if t[0] <= t[1]), key=lambda t: t[0])

    cheaper = [n for n in (crops - 1, crops + 1) if patch_tokens(*squarest(n)) < cost]
    better = min(cheaper, key=lambda n: Fraction(squarest(n)[1], squarest(n)[0]))
    rows, columns = squarest(better)
    return (
        f"{crops} crops ({(crops + 1) * TOKENS_PER_CROP} tokens) is a prime: only strips of 1×{crops} or {crops}×1 "
        f"tiles, {cost} image tokens and mostly padding. Better: tokens={(better + 1) * TOKENS_PER_CROP} "
        f"({better} crops, {rows}×{columns}: {patch_tokens(rows, columns)} image tokens)."
    )
