"""Scores of several data sets (or metrics) as one: mean, weighted mean or median, block by block.

Each part is first turned so that higher means more important and, unless told otherwise, z-scored over its blocks:
z_b = (x_b - mean) / s, s the standard deviation over the B blocks (divided by B), so that no data set counts more
because its numbers are larger.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median, pstdev

from importance.scores import MORE, Scores
from transform.errors import ScoresError

MERGES = ("mean", "weighted", "median")
UNIT = "standard deviations over the blocks"
Numbers = Mapping[int, float]


def merge_scores(
    scores: Sequence[Scores], how: str = "mean", weights: Sequence[float] | None = None, normalise: bool = True
) -> Scores:
    """One `Scores` of the same blocks, higher = more important; ScoresError says why parts can't be merged.

    how: one of MERGES; `weighted` needs `weights`, one per part, 0 or more, whatever their sum. normalise=False keeps
    the numbers as they are and needs the same metric and unit in all parts.

    stderr: that of the weighted mean of independent data sets, where all parts have it for all blocks; through the
    z-score to first order, dz_b/dx_j = ([b = j] - 1/B - z_b z_j / B) / s, the blocks' errors taken as independent.
    None for the median, and none where parts share a data set. samples: their sum, each data set once; None if one is
    unknown. model_digest: None if one is unknown. The notes list the parts.
    """
    _check(scores, normalise)
    shares = _shares(how, weights, len(scores))
    tables = [part.importance for part in scores]
    errors: list[Numbers | None] = [_stderr(part) for part in scores]
    if normalise:
        pairs = [
            _normalised(table, error, part.source) for table, error, part in zip(tables, errors, scores, strict=True)
        ]
        tables, errors = [table for table, _ in pairs], [error for _, error in pairs]
    join: Callable[[list[float]], float] = median if how == "median" else lambda column: _weighted(shares, column)
    blocks = sorted(tables[0])
    digests = [part.data_digest for part in scores]
    named = [digest for digest in digests if digest is not None]
    apart = len(set(named)) == len(named)
    stderr = {}
    known = [error for error in errors if error is not None]
    if how != "median" and apart and len(known) == len(scores):
        stderr = {b: math.sqrt(math.fsum((w * e[b]) ** 2 for w, e in zip(shares, known, strict=True))) for b in blocks}
    models = {part.model_digest for part in scores}
    bases = [part.baseline for part in scores if part.baseline is not None]
    same = {(part.metric, part.unit) for part in scores}
    name = ", ".join(dict.fromkeys(part.metric for part in scores))
    return Scores(
        values={block: join([table[block] for table in tables]) for block in blocks},
        metric=f"{how if how != 'weighted' else 'weighted mean'} of {len(scores)}: {name}",
        unit=UNIT if normalise or len(same) > 1 else scores[0].unit,
        higher_means=MORE,
        stderr=stderr,
        baseline=join(bases) if len(bases) == len(scores) and not normalise else None,
        samples=_samples(scores),
        model_digest=models.pop() if len(models) == 1 else None,
        data_digest=_data_digest(digests),
        source="merged scores",
        notes={"merge": {"how": how, "normalise": normalise, "parts": _parts(scores, shares, how)}},
    )


def _check(scores: Sequence[Scores], normalise: bool) -> None:
    if len(scores) < 2:
        raise ScoresError(f"merging needs at least 2 scores files, got {len(scores)}. Give another one.")
    first = scores[0]
    models = {part.model_digest: part.source for part in scores if part.model_digest is not None}
    if len(models) > 1:
        named = ", ".join(f"{source} of {digest[:12]}…" for digest, source in models.items())
        raise ScoresError(f"merged scores must be of one model, got {len(models)}: {named}. Score the same model.")
    for part in scores[1:]:
        differ = sorted(set(part.values) ^ set(first.values))
        if differ:
            raise ScoresError(
                f"merged scores must be of the same blocks; {first.source} has {len(first.values)}, {part.source} "
                f"{len(part.values)}, only one has {', '.join(map(str, differ))}. Score these too, or leave them out."
            )
        if not normalise and (part.metric, part.unit) != (first.metric, first.unit):
            raise ScoresError(
                "scores are merged as they are only where metric and unit agree; "
                f"{first.source} has {first.metric!r} in {first.unit!r}, {part.source} {part.metric!r} in "
                f"{part.unit!r}. Merge them normalised."
            )


def _shares(how: str, weights: Sequence[float] | None, parts: int) -> list[float]:
    """Weights with sum 1."""
    if how not in MERGES:
        raise ScoresError(f"scores are merged by one of {', '.join(MERGES)}, got {how!r}. Use one of them.")
    if (how == "weighted") != (weights is not None):
        raise ScoresError(
            f"weights belong to weighted merging and it to them; got {how!r} with weights {weights!r}. "
            "Give both or neither."
        )
    if weights is None:
        return [1 / parts] * parts
    numbers = [float(weight) for weight in weights]
    if len(numbers) != parts:
        raise ScoresError(f"each part needs one weight: {parts} parts, {len(numbers)} weights. Give one per file.")
    total = math.fsum(numbers)
    if not all(math.isfinite(weight) and weight >= 0 for weight in numbers) or not 0 < total < math.inf:
        raise ScoresError(f"weights must be 0 or more with a sum above 0, got {numbers}. Correct them.")
    return [weight / total for weight in numbers]


def _weighted(shares: Sequence[float], column: Sequence[float]) -> float:
    return math.fsum(share * value for share, value in zip(shares, column, strict=True))


def _stderr(part: Scores) -> Numbers | None:
    return part.stderr if part.stderr.keys() >= part.values.keys() else None


def _normalised(table: Numbers, error: Numbers | None, source: str) -> tuple[dict[int, float], Numbers | None]:
    count, centre, spread = len(table), fmean(table.values()), pstdev(table.values())
    if not spread:
        raise ScoresError(
            f"{source}: scores that rank blocks must differ, all {count} are {centre}. Leave this file out, or score "
            "it with more samples."
        )
    z = {block: (value - centre) / spread for block, value in table.items()}
    if error is None:
        return z, None

    def propagated(b: int) -> float:
        slopes = (((b == j) - (1 + z[b] * z[j]) / count) / spread * error[j] for j in z)
        return math.sqrt(math.fsum(slope**2 for slope in slopes))

    return z, {block: propagated(block) for block in z}


def _samples(scores: Sequence[Scores]) -> int | None:
    """What was scored, each data set once: two metrics on the same 500 items are 500, not 1000."""
    counts: dict[object, int] = {}
    for number, part in enumerate(scores):
        if part.samples is None:
            return None
        key = part.data_digest or number
        counts[key] = max(part.samples, counts.get(key, 0))
    return sum(counts.values())


def _data_digest(digests: Sequence[str | None]) -> str | None:
    """Of all data sets together, in whatever order; None if one is unknown."""
    known = sorted({digest for digest in digests if digest is not None})
    if None in digests:
        return None
    return known[0] if len(known) == 1 else hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _parts(scores: Sequence[Scores], shares: Sequence[float], how: str) -> list[dict[str, object]]:
    return [
        {
            "source": part.source,
            "metric": part.metric,
            "unit": part.unit,
            "higher_means": part.higher_means,
            "samples": part.samples,
            "data_digest": part.data_digest,
            "weight": None if how == "median" else share,
        }
        for part, share in zip(scores, shares, strict=True)
    ]
