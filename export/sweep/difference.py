"""Whether two settings differ on the same questions: the mean of paired differences and its 95 % interval.

The standard error is `importance.statistics.paired_drop`'s, by pictures: questions about one err together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from export.sweep.answers import Samples, read_answers, read_samples
from export.sweep.table import Drop

NORMAL = 1.959964  # standard deviations of a 95 % interval


@dataclass
class Differences:
    """Of a sweep's settings; reads each one's answers once."""

    directory: Path
    _scores: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def between(self, name: str, other: str, task: str | None = None) -> Drop:
        """How much more accurate `name` is than `other`, on all questions or one task's; raises VerificationError."""
        from importance.statistics import paired_drop

        chosen = [n for n, found in enumerate(self._samples.tasks) if task in (None, found)]
        pictures = [self._samples.pictures[n] for n in chosen]
        ours, theirs = ([self._of(one)[n] for n in chosen] for one in (name, other))
        mean = sum(a - b for a, b in zip(ours, theirs, strict=True)) / len(chosen)
        if len(chosen) < 2:
            return Drop(mean, None, None)
        together = pictures if len(set(pictures)) > 1 else None
        stderr = float(paired_drop(ours, theirs, together).stderr[0])
        return Drop(mean, stderr, (mean - NORMAL * stderr, mean + NORMAL * stderr))

    @cached_property
    def _samples(self) -> Samples:
        return read_samples(self.directory)

    def _of(self, name: str) -> tuple[float, ...]:
        if name not in self._scores:
            self._scores[name] = read_answers(self.directory, name, len(self._samples.ids)).scores
        return self._scores[name]


def within_error(drop: Drop) -> bool:
    """Whether no difference could be told."""
    return drop.interval is None or drop.interval[0] <= 0 <= drop.interval[1]


def as_dict(drop: Drop) -> Mapping[str, object]:
    """For JSON."""
    return {"mean": drop.mean, "interval": drop.interval, "within_error": within_error(drop)}
