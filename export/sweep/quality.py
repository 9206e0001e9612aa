"""What every setting answers to the user's questions, and what that says: accuracies with intervals, paired drops.

All settings of a budget go through the engine's prefix trie in one pass, and each picture through the vision tower once
per budget. Answers are those of `knobcast evaluate` on the variant, so they are graded here as there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from export.sweep.answers import Answers, Samples
from export.sweep.settings import Planned
from export.sweep.table import Drop, Quality, Share
from importance.jobs import JobsError, Submits
from importance.look import look
from importance.prompts import load_processor, prompts_for
from importance.score import Scorer, Setting
from importance.statistics import Spread
from importance.tasks import metric_named
from transform.checkpoint import Checkpoint
from transform.progress import Progress


@dataclass(frozen=True)
class Failure:
    """Why a setting has no answers."""

    reason: str


Found = Mapping[str, tuple[str, ...] | Failure]  # by the setting's name


def samples_of(questions: Setting) -> Samples:
    """For `samples.json`."""
    samples = questions.samples
    return Samples(
        tuple(sample.id for sample in samples),
        tuple(questions.groups.tolist()),
        tuple(sample.kind or "" for sample in samples),
    )


def look_at(questions: Setting, budgets: Sequence[int | str | None]) -> None:
    """Refuse samples that some budget can't take, before a weight is read: pictures not to be seen, long prompts."""
    checkpoint = questions.checkpoint
    processor = load_processor(checkpoint)
    for tokens in budgets:
        prompts = prompts_for(processor, tokens, checkpoint.architecture.prompt)
        look(questions.samples, prompts, checkpoint.settings.max_positions, questions.max_new_tokens)


def groups_of(settings: Sequence[Planned]) -> dict[int | str | None, list[Planned]]:
    """Settings over the same weights, by their budget."""
    found: dict[int | str | None, list[Planned]] = {}
    for setting in settings:
        found.setdefault(setting.tokens, []).append(setting)
    return found


@dataclass(eq=False)
class Asker:
    """Asks the questions of settings over one set of weights. report: what the engine counted, all budgets together."""

    questions: Setting
    weights: Checkpoint
    store: Path
    executor: Submits | None
    progress: Progress
    report: dict[str, int]

    def ask(self, settings: Sequence[Planned]) -> Iterator[Found]:
        """The answers of settings, a budget after the other; those of one that fails alone are a Failure."""
        for tokens, members in groups_of(settings).items():
            scorer = Scorer(
                replace(self.questions, checkpoint=self.weights, tokens=tokens), self.store, self.executor,
                self.progress, self.report,
            )  # fmt: skip
            yield self._together(scorer, members)

    def _together(self, scorer: Scorer, members: Sequence[Planned]) -> Found:
        configs = [member.config for member in members]
        try:
            answers = scorer.answers(configs)
        except JobsError as error:
            if len(members) == 1:
                failed = f"{len(error.failed)} jobs failed, the first because {error.failed[0][1]}"
                return {members[0].name: Failure(failed)}
            scorer.progress = None  # counted already, as far as it came
            # one setting that can't be measured, such as one whose logits aren't finite, must not take the others along
            apart = [self._together(scorer, [member]) for member in members]
            return {name: found for each in apart for name, found in each.items()}
        return {member.name: tuple(texts) for member, texts in zip(members, answers, strict=True)}


def graded(questions: Setting, texts: Sequence[str]) -> Answers:
    """The answers with their scores, as `evaluate` grades them."""
    grade = metric_named(questions.task)
    scores = tuple(float(grade(text, sample)) for text, sample in zip(texts, questions.samples, strict=True))
    return Answers(tuple(texts), scores)


def qualities(samples: Samples, answers: Mapping[str, Answers], full: str) -> dict[str, Quality]:
    """What the answers of all settings say, `full` among them; intervals over pictures where there are several."""
    names = list(answers)
    scores = np.array([answers[name].scores for name in names])  # [settings, samples]
    pictures = np.array(samples.pictures)
    total = _shares(scores, pictures)
    tasks = np.array(samples.tasks)
    by_task = {str(t): _shares(scores[:, tasks == t], pictures[tasks == t]) for t in sorted(set(samples.tasks)) if t}
    lost = scores[names.index(full)] - scores
    drops = Spread.of(lost, pictures)
    return {
        name: Quality(
            total[n],
            {task: shares[n] for task, shares in by_task.items()},
            Drop(float(lost[n].mean()), drops.stderr.get(n), drops.interval.get(n)),
        )
        for n, name in enumerate(names)
    }


def _shares(scores: np.ndarray, pictures: np.ndarray) -> list[Share]:
    spread = Spread.of(scores, pictures)
    return [
        Share(float(row.mean()), spread.stderr.get(n), spread.interval.get(n), len(row)) for n, row in enumerate(scores)
    ]
