"""The task metrics by name, and how sure a mean of them is. Each gives an answer to a sample a number from 0 to 1.

The formulas are in `task_metrics/`, one file each: plain functions of an answer and the accepted ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from importance.samples import Sample, SamplesError, require_answers
from importance.task_metrics.anls import anls
from importance.task_metrics.exact_match import exact_match, normalise
from importance.task_metrics.multiple_choice import choice_named, multiple_choice
from importance.task_metrics.relaxed_accuracy import relaxed_accuracy
from importance.task_metrics.token_f1 import token_f1
from importance.task_metrics.vqa_score import vqa_score
from transform.errors import KnobError

__all__ = [
    "METRICS",
    "Grade",
    "TaskMetric",
    "anls",
    "check_samples",
    "exact_match",
    "metric_named",
    "multiple_choice",
    "normalise",
    "relaxed_accuracy",
    "standard_error",
    "token_f1",
    "vqa_score",
    "wilson",
]

Grade = Callable[[str, Sample], float]  # (answer, sample) -> how right it is, 0 to 1
Z95 = 1.959963984540054


@dataclass(frozen=True)
class TaskMetric:
    """A metric with its name and what it needs. `metric(answer, sample)` gives 0 to 1.

    function: (answer, accepted), with `choices` (answer, accepted, choices); answers: the fewest a sample must have.
    """

    name: str
    function: Callable[..., float]
    ref: str
    answers: int = 1
    choices: bool = False

    def __call__(self, answer: str, sample: Sample) -> float:
        """How right an answer to the sample is, from 0 to 1."""
        return self.function(answer, sample.answers, *([sample.choices] if self.choices else []))


METRICS: Mapping[str, TaskMetric] = {
    metric.name: metric
    for metric in (
        TaskMetric("exact_match", exact_match, ref="after `normalise`"),
        TaskMetric("vqa_score", vqa_score, ref="arXiv:1505.00468", answers=2),
        TaskMetric("multiple_choice", multiple_choice, ref="arXiv:2209.09513", choices=True),
        TaskMetric("anls", anls, ref="arXiv:1907.00490"),
        TaskMetric("relaxed_accuracy", relaxed_accuracy, ref="arXiv:2203.10244"),
        TaskMetric("token_f1", token_f1, ref="arXiv:1606.05250"),
    )
}


def metric_named(name: str) -> TaskMetric:
    """The metric of that name; raises KnobError for any other."""
    if name not in METRICS:
        raise KnobError(f"the metric must be one of {', '.join(METRICS)}, got {name[:40]!r}. Choose one of them.")
    return METRICS[name]


def check_samples(samples: Sequence[Sample], metric: Grade) -> None:
    """Refuse samples that can't be scored, before a model runs; raises SamplesError with counts.

    Every sample must have answers. A `TaskMetric` may ask for more: answers of several annotators, or choices.
    """
    if not isinstance(metric, TaskMetric):
        require_answers(samples, "accuracy")
        return
    require_answers(samples, metric.name)
    few = [s for s in samples if len(s.answers) < metric.answers]
    if few:
        raise SamplesError(
            f"{metric.name} needs the answers of at least {metric.answers} annotators for each sample: {len(few)} of "
            f"{len(samples)} have fewer, the first is {few[0].id!r}. Use another metric, such as exact_match."
        )
    if metric.choices:
        _check_choices(samples, metric.name)


def _check_choices(samples: Sequence[Sample], name: str) -> None:
    none = [s for s in samples if not s.choices]
    if none:
        raise SamplesError(
            f"{name} needs choices for each sample: {len(none)} of {len(samples)} have none, the first is "
            f"{none[0].id!r}. Add them, or use another metric, such as exact_match."
        )
    for sample in samples:
        for one in sample.answers:
            if choice_named(one, sample.choices) is None:
                raise SamplesError(
                    f"{name}: each accepted answer must name one of the sample's {len(sample.choices)} choices, "
                    f"{one[:40]!r} of sample {sample.id!r} doesn't. Give a choice's letter or its text."
                )


def standard_error(scores: Sequence[float]) -> float:
    """Of their mean: sqrt(variance / n), the variance over n. For right or wrong that is sqrt(p (1 - p) / n)."""
    mean = math.fsum(scores) / len(scores)
    return math.sqrt(math.fsum((score - mean) ** 2 for score in scores)) / len(scores)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson's score interval): within 0 and 1, and not empty at either end.

    For the mean of scores between 0 and 1 it is rather too wide: their variance is at most share (1 - share).
    """
    z2 = Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)
