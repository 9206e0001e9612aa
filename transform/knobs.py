"""The knob settings as a frozen value: parsed and checked at the edge, named canonically (`k4-b12-t432`).

`keep` is the chosen blocks, everything else what the user typed; None is not said: "as the source has it".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from transform.errors import KnobError
from transform.forms import ACTIVATIONS, form_named

MOST_DIGITS = 9
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Knobs:
    """One setting. `k`: global or one value per kept block; `keep`: kept block indices of the source, ascending;
    `tokens`: nominal vision tokens per image, or a tier; `dtype`: `source` or a key of DTYPES; `form`: a name
    of FORMS, None: the one that the source's weights are for; `resize`, `rule`: how a picture is fitted and tiled;
    `activations`: of ACTIVATIONS, what quantised matrices are multiplied with."""

    k: int | tuple[int, ...] | None = None
    keep: tuple[int, ...] | None = None
    tokens: int | str | None = None
    dtype: str = "source"
    form: str | None = None
    resize: str | None = None
    rule: str | None = None
    activations: str | None = None

    def __post_init__(self) -> None:
        if self.dtype != "source" and self.dtype not in DTYPES:
            raise KnobError(f"dtype must be source, {', '.join(DTYPES)}, got {self.dtype!r}.")
        form = None if self.form is None else form_named(self.form)
        if form and not form.takes(self.dtype):
            raise KnobError(f"the {form.name} form is {form.stored}, got dtype {self.dtype!r}. Leave the dtype out.")
        if self.activations is not None and self.activations not in ACTIVATIONS:
            raise KnobError(f"activations must be {' or '.join(ACTIVATIONS)}, got {self.activations!r}.")


def parse_k(text: str | int | None) -> int | tuple[int, ...] | None:
    """`"4"` -> 4, `"8,4,4"` -> (8, 4, 4); raises KnobError for anything but whole numbers from 1."""
    if text is None:
        return None
    parts = str(text).split(",")
    if not all(_is_count(part.strip()) and int(part) >= 1 for part in parts):
        raise KnobError(f"k must be a whole number from 1, or one per kept block as in 8,4,4, got {_short(text)}.")
    values = tuple(int(part) for part in parts)
    return values[0] if len(values) == 1 else values


def parse_blocks(text: str | None, option: str) -> tuple[int, ...] | None:
    """`"0,1,3"` -> (0, 1, 3); raises KnobError for anything but block indices."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(_is_count(part) for part in parts):
        raise KnobError(f"{option} takes block indices from 0 as in 0,1,3, got {_short(text)}.")
    return tuple(int(part) for part in parts)


def parse_count(text: str | None, option: str) -> int | None:
    """`"12"` -> 12; raises KnobError for anything but a whole number."""
    if text is None:
        return None
    if not _is_count(text.strip()):
        raise KnobError(f"{option} must be a whole number from 1, got {_short(text)}.")
    return int(text)


def parse_tokens(text: str | int | None) -> int | str | None:
    """`"432"` -> 432, a tier as it is; whether the number is a possible budget is the tiling's to say."""
    if text is None:
        return None
    word = str(text).strip()
    if word in ("low", "medium", "high"):
        return word
    if not _is_count(word):
        raise KnobError(
            "tokens must be a whole number (a multiple of 144 where images are cut into crops), or low, medium, high, "
            f"got {_short(text)}."
        )
    return int(word)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS


def _short(text: str | int) -> str:
    return repr(str(text)[:40])


def merged_k(top_k: Sequence[int]) -> int | tuple[int, ...]:
    """One number where all blocks have the same k, else one per block: a k as people give it."""
    return top_k[0] if len(set(top_k)) == 1 else tuple(top_k)


def spelt_k(top_k: Sequence[int]) -> str:
    """`4`, or `8,4,4`: what `parse_k` reads."""
    k = merged_k(top_k)
    return str(k) if isinstance(k, int) else ",".join(map(str, k))


def k_words(top_k: Sequence[int]) -> str:
    """k as tables say it: of the blocks that have experts."""
    routed = [k for k in top_k if k]
    if not routed:
        return "no experts"
    dense = len(top_k) - len(routed)
    return spelt_k(routed) + (f" (blocks without experts: {dense})" if dense else "")


def canonical_name(top_k: tuple[int, ...], tokens: int | str | None) -> str:
    """`k4-b12-t432`; per-block k is written in runs (`k8x1.4x11`), blocks without experts count as blocks alone, stock
    tiling leaves the tokens out."""
    runs = [(value, len(list(group))) for value, group in groupby(k for k in top_k if k)]
    width = str(runs[0][0]) if len(runs) == 1 else ".".join(f"{value}x{count}" for value, count in runs)
    name = f"k{width}-b{len(top_k)}" if runs else f"b{len(top_k)}"
    return name if tokens is None else f"{name}-t{tokens}"
