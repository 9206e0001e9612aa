"""What a setting is likely to lose by its missing blocks: a cheap guess that orders work, and prunes where asked to.

The sum of what scores say of each block alone. It knows nothing of k, tokens and form, and is never put into the table
as if it were measured.
"""

from collections.abc import Mapping, Sequence

from export.sweep.settings import Planned
from importance.choose import Source
from importance.scores import Scores
from transform.errors import KnobError

ACCURACY = "accuracy"


def predicted_drops(settings: Sequence[Planned], ranking: Source | None) -> dict[str, float]:
    """By a setting's name, in the scores' unit; empty where nothing was scored, or not every block that goes."""
    scores = ranking if isinstance(ranking, Scores) else None if ranking is None else ranking.scores
    if scores is None or any(set(setting.plan.removed) - scores.importance.keys() for setting in settings):
        return {}
    return {setting.name: sum(scores.importance[b] for b in setting.plan.removed) for setting in settings}


def pruned(settings: Sequence[Planned], ranking: Source | None, most: float, full: str) -> Mapping[str, str]:
    """{name: why} of settings that are predicted to lose more accuracy than `most`; raises KnobError without scores."""
    scores = ranking if isinstance(ranking, Scores) else None if ranking is None else ranking.scores
    found = predicted_drops(settings, ranking)
    if not 0 <= most <= 1:
        raise KnobError(f"--prune must be a drop in accuracy from 0 to 1, got {most}. Give one such as 0.2.")
    if scores is None or not scores.unit.startswith(ACCURACY) or not found:
        unit = "none" if scores is None else scores.unit
        raise KnobError(
            f"--prune goes by accuracy drops of every block that may go, and what chooses blocks has {unit}. "
            "Score with --metric accuracy and give that file as --scores, or leave --prune out."
        )
    return {
        name: f"not measured: its blocks are predicted to lose {drop:.3f}, more than --prune {most:g}"
        for name, drop in found.items()
        if drop > most and name != full
    }
