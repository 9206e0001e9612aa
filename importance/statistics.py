"""How sure a score is, and whether two rankings agree. numpy only.

Legend: n items scored, m settings (such as one block left out each), G groups of items that belong together, such as
the questions of one picture: they err together, so that n of them tell less than n independent ones.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transform.arrays import Array
from transform.errors import ScoresError

CONSISTENT, ACCEPTABLE, INVESTIGATE = "consistent", "acceptable", "investigate"
_CELLS = 1 << 22  # of the largest temporary array: 32 MiB
_COLUMNS = 256  # settings at once


@dataclass(frozen=True)
class PairedDrop:
    """What each setting loses against the full model, on the same items. mean, stderr: [m]; n items, G groups."""

    mean: Array
    stderr: Array
    samples: int
    groups: int


def paired_drop(full: ArrayLike, ablated: ArrayLike, groups: Sequence[Hashable] | None = None) -> PairedDrop:
    """full: [n], ablated: [m, n] or [n], of the same items in the same order. Mean of full - ablated and its stderr.

    stderr = s / sqrt(n), s the sample deviation (n - 1) of the differences: what all settings share cancels.
    groups: [n] labels; then it is the cluster-robust one, sqrt(G / (G - 1) sum_g (sum_{i in g} r_i)^2) / n, r_i a
    difference minus the mean; with n groups of one both are equal. At least 2 items and 2 groups.
    """
    before, after = _matrix(full, "full"), _matrix(ablated, "ablated")
    if before.shape[0] != 1 or before.shape[1] != after.shape[1]:
        raise ScoresError(
            f"full needs one value for each item of ablated: full has shape {np.shape(full)}, ablated "
            f"{np.shape(ablated)}. Score both on the same items."
        )
    drop = before - after  # [m, n]
    labels, count = _labels(groups, drop.shape[1])
    mean = drop.mean(axis=1)
    sums = _sums(drop - mean[:, None], labels, count)  # [m, G]
    stderr = np.sqrt(count / (count - 1) * (sums**2).sum(axis=1)) / drop.shape[1]
    return PairedDrop(mean, stderr, drop.shape[1], count)


def bootstrap_interval(
    values: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Array, Array]:
    """(low [m], high [m]): the percentile bootstrap interval of the mean of each row of values, [m, n] or [n].

    Items are drawn with replacement, whole groups where labels are given (a resample's mean is then over the items it
    has); every row sees the same draws, and the same seed gives the same interval. Needs about 64 MiB at most.
    """
    table = _matrix(values, "values")
    labels, count = _labels(groups, table.shape[1])
    if type(resamples) is not int or resamples < 1:
        raise ScoresError(f"resamples must be 1 or more, got {resamples!r}. 2000 is usual.")
    if not 0 < level < 1:
        raise ScoresError(f"level must be between 0 and 1, got {level!r}. 0.95 is usual.")
    sizes = np.bincount(labels, minlength=count).astype(np.float64)  # [G]
    bounds = []
    for start in range(0, len(table), _COLUMNS):
        sums = _sums(table[start : start + _COLUMNS], labels, count)
        means = _resampled(sums, sizes, resamples, np.random.default_rng(seed))  # [resamples, rows]
        bounds.append(np.quantile(means, ((1 - level) / 2, (1 + level) / 2), axis=0))
    low, high = np.concatenate(bounds, axis=1)
    return low, high


def _resampled(sums: Array, sizes: Array, resamples: int, draws: np.random.Generator) -> Array:
    count = len(sizes)
    rows = max(1, _CELLS // count)
    means = []
    for start in range(0, resamples, rows):
        chunk = min(rows, resamples - start)
        drawn = draws.integers(0, count, size=(chunk, count)) + count * np.arange(chunk)[:, None]
        times = np.bincount(drawn.ravel(), minlength=chunk * count).reshape(chunk, count).astype(np.float64)
        means.append(times @ sums.T / (times @ sizes)[:, None])
    return np.concatenate(means)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation in [-1, 1] of two sequences of equal length; ties get the average of their ranks.

    ScoresError where all values of one are equal: it ranks nothing, so there is no agreement to measure.
    """
    first, second = _matrix(a, "a"), _matrix(b, "b")
    if first.shape != second.shape or len(first) != 1:
        raise ScoresError(
            f"two rankings need the same items: a has shape {np.shape(a)}, b {np.shape(b)}. "
            "Compare the blocks that both have."
        )
    x, y = (_doubled_ranks(row[0]) for row in (first, second))
    x, y = x - x.mean(), y - y.mean()
    spread = float((x @ x) * (y @ y))
    if not spread:
        raise ScoresError(
            f"a ranking needs at least two different values, got {x.size} equal ones. Score with more samples."
        )
    return max(-1.0, min(1.0, round(float(x @ y) / spread**0.5, 12)))  # 0.9 is 0.9 and not the float below


def agreement(a: ArrayLike, b: ArrayLike) -> tuple[float, str]:
    """(rho, word): `consistent` above 0.9, `acceptable` from 0.8 to 0.9, `investigate` below; rho as in `spearman`."""
    rho = spearman(a, b)
    return rho, CONSISTENT if rho > 0.9 else ACCEPTABLE if rho >= 0.8 else INVESTIGATE


def _doubled_ranks(values: Array) -> Array:
    """Twice the average rank from 0: whole numbers, so that sums of them are exact."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    doubled: Array = (2 * ends - counts - 1).astype(np.float64)[place]
    return doubled


def _matrix(values: ArrayLike, name: str) -> Array:
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2 or table.shape[1] < 2 or not len(table):
        raise ScoresError(f"{name} must be [m, n] or [n] with n at least 2, got shape {np.shape(values)}.")
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise ScoresError(f"{name} must be finite numbers, item {column} of row {row} is {table[row, column]}.")
    return table


def _labels(groups: Sequence[Hashable] | None, items: int) -> tuple[NDArray[np.intp], int]:
    """([n] group numbers, G). Labels may be anything that can be a key."""
    if groups is None:
        return np.arange(items), items
    if len(groups) != items:
        raise ScoresError(f"each item has one group: {items} items, {len(groups)} groups. Give a label per item.")
    numbers: dict[Hashable, int] = {}
    labels = np.array([numbers.setdefault(label, len(numbers)) for label in groups], dtype=np.intp)
    if len(numbers) < 2:
        raise ScoresError(f"an error between groups needs at least 2 of them, {items} items are in 1. Use more groups.")
    return labels, len(numbers)


def _sums(table: Array, labels: NDArray[np.intp], count: int) -> Array:
    """[m, n] -> [m, G], summed within groups."""
    if count == table.shape[1]:  # every item is a group of its own
        return table
    return np.stack([np.bincount(labels, weights=row, minlength=count) for row in table])


@dataclass(frozen=True)
class Spread:
    """Standard errors and 95 % intervals of the means of rows; both empty where there is one item only."""

    stderr: dict[int, float]
    interval: dict[int, tuple[float, float]]
    note: str

    @classmethod
    def of(cls, values: np.ndarray, groups: np.ndarray | None) -> "Spread":
        """values [m, n]; groups [n]: items that share one are drawn together, where there are at least two groups."""
        if values.shape[1] < 2:
            return cls({}, {}, "none: one item only")
        together = None if groups is None or len(set(groups.tolist())) < 2 else groups.tolist()
        stderr = paired_drop(np.zeros(values.shape[1]), -values, together).stderr
        low, high = bootstrap_interval(values, together)
        return cls(
            dict(enumerate(stderr.tolist())),
            dict(enumerate(zip(low.tolist(), high.tolist(), strict=True))),
            f"95 %, percentile bootstrap over {'items' if together is None else 'pictures'}",
        )
