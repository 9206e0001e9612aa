"""What counts as a right answer. One function per metric; each takes an answer and the accepted ones, and gives 0 to 1.

`exact_match` compares after a normalisation in the manner of VQA's, so that "A red one." and "red 1" agree.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

Metric = Callable[[str, Sequence[str]], float]

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_APOSTROPHES = re.compile(r"['’`]")  # deleted, not spaced: "don't" is one word
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_KEPT = re.compile(r"(?<=\d)\.(?=\d)|(?<!\S)-(?=\.?\d)")  # a decimal point, a minus sign
Z95 = 1.959963984540054


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation, no articles, number words up to ten as digits.

    An answer that is nothing else ("A", "?") stays as it is: otherwise it would equal an empty one.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    bare = _THOUSANDS.sub("", _APOSTROPHES.sub("", plain))
    kept = {match.start() for match in _KEPT.finditer(bare)}
    spaced = "".join(c if i in kept or not _is_mark(c) else " " for i, c in enumerate(bare)).split()
    words = [NUMBERS.get(word, word) for word in spaced if word not in ARTICLES]
    return " ".join(words or spaced) or plain


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"  # punctuation and symbols of any script


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1 where the answer equals any of the accepted ones after `normalise`, else 0."""
    return float(normalise(answer) in {normalise(one) for one in accepted})


METRICS: Mapping[str, Metric] = {"exact_match": exact_match}


def standard_error(scores: Sequence[float]) -> float:
    """Of their mean: sqrt(variance / n), the variance over n. For right or wrong that is sqrt(p (1 - p) / n)."""
    mean = math.fsum(scores) / len(scores)
    return math.sqrt(math.fsum((score - mean) ** 2 for score in scores)) / len(scores)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson's score interval): within 0 and 1, and not empty at either end."""
    z2 = Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)
