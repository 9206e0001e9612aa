"""How many answers of a model are right. Greedy, float32, at whatever knobs the model has while it runs.

    prepared = prepare(model, processor, samples, tokens=432)        # pictures are seen once per budget
    with knobs_at_run_time(model, keep_blocks=(0, 1, 3), top_k=(4, 4, 4)):
        print(evaluate(model, prepared).accuracy)

Samples are grouped by picture: begin token and image stream are prefilled once, then all questions about it run as
one batch on the expanded cache. Equal to `model.generate()` one sample at a time, up to float32 rounding.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from importance.around import attends_locally
from importance.batch import answer_batch, prefill, rows_that_fit
from importance.look import check_room, look, opened
from importance.prompts import Processor, Prompts, load_processor, prompts_for
from importance.samples import EncodedImage, Picture, Sample, SamplesError
from importance.tasks import METRICS, Grade, check_samples, standard_error
from transform.architectures import architecture_named, architecture_of
from transform.load import load_model
from transform.molmoe.pictures import ImageError
from transform.plan import Plan
from transform.progress import Progress
from transform.runtime import find_decoder, knobs_at_run_time

MAX_NEW_TOKENS = 16
EXACT_MATCH = METRICS["exact_match"]


@dataclass(frozen=True)
class Share:
    """Accuracy of some samples, from 0 to 1, and its standard error."""

    accuracy: float
    stderr: float
    samples: int

    @classmethod
    def of(cls, scores: Sequence[float]) -> "Share":
        """The mean of scores from 0 to 1."""
        return cls(math.fsum(scores) / len(scores), standard_error(scores), len(scores))

    def as_dict(self) -> dict[str, object]:
        """For `--json`."""
        return {"accuracy": self.accuracy, "stderr": self.stderr, "samples": self.samples}


@dataclass(frozen=True)
class Evaluation(Share):
    """The whole result. `by_kind`: samples without a kind count in the total only; `answers` and `scores` are in the
    order of the samples."""

    by_kind: dict[str, Share]
    answers: tuple[str, ...]
    scores: tuple[float, ...]

    def as_dict(self) -> dict[str, object]:
        """For `--json`: the numbers without the single answers."""
        return {**super().as_dict(), "by_kind": {kind: share.as_dict() for kind, share in self.by_kind.items()}}


Question = tuple[int, tuple[int, ...]]  # index of the sample, token ids


@dataclass(frozen=True, eq=False)
class Group:
    """One picture, or none, and the questions about it."""

    picture: Picture | None
    questions: tuple[Question, ...]


class Prepared:
    """Samples as token ids, grouped by picture, in the order in which pictures first occur.

    With `hold` the embedded prefixes of all pictures stay in memory (4 bytes × width × tokens each), else each is
    made when its turn comes. They depend on the vision budget, not on k or blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Prompts,
        samples: Iterable[Sample],
        hold: bool,
        max_positions: int | None = None,
    ) -> None:
        self.samples = tuple(samples)
        if not self.samples:
            raise SamplesError("at least one sample is needed, got 0.")
        self.prompts, self._model = prompts, model
        self.max_positions = max_positions or _max_positions(model)
        self.groups = self._grouped()
        self._held = [self._embed(group) for group in self.groups] if hold else None

    def prefixes(self) -> Iterator[tuple[Group, Tensor]]:
        """Each group with the embeddings [1, P, d] that its prompts begin with."""
        for i, group in enumerate(self.groups):
            yield group, self._held[i] if self._held is not None else self._embed(group)

    def check_room(self, group: Group, prefix: int, max_new_tokens: int) -> None:
        """Refuse a sample that doesn't fit the model's positions."""
        for index, ids in group.questions:
            self.check_sample(index, prefix, len(ids), max_new_tokens)

    def check_sample(self, index: int, prefix: int, question: int, answer: int) -> None:
        """The same for one sample, in tokens."""
        check_room(self.samples[index], prefix, question, answer, self.max_positions)

    def _grouped(self) -> tuple[Group, ...]:
        found: dict[object, tuple[Picture | None, list[Question]]] = {}
        for index, sample in enumerate(self.samples):
            if len(sample.images) > 1:
                raise SamplesError(
                    f"sample {sample.id!r}: a prompt takes at most one image, got {len(sample.images)}. Split it."
                )
            picture = sample.images[0] if sample.images else None
            key = picture if picture is None or isinstance(picture, str | Path | EncodedImage) else id(picture)
            questions = found.setdefault(key, (picture, []))[1]
            questions.append((index, tuple(self.prompts.question(sample))))
        return tuple(Group(picture, tuple(questions)) for picture, questions in found.values())

    @torch.no_grad()
    def _embed(self, group: Group) -> Tensor:
        try:
            picture = group.picture if group.picture is None else opened(group.picture)
            return self.prompts.prefix(self._model, picture)
        except ImageError as error:
            raise SamplesError(f"sample {self.samples[group.questions[0][0]].id!r}: {error}") from error


def prepare(
    model: nn.Module,
    processor: Processor,
    samples: Iterable[Sample],
    tokens: int | str | None = None,
    *,
    hold: bool = True,
    max_positions: int | None = None,
) -> Prepared:
    """Everything that doesn't depend on k and blocks. `processor`: see `prompts.load_processor`; `tokens` None is its
    own budget. `hold`: keep the pictures' embeddings, for many evaluations; else memory doesn't grow with samples.
    `max_positions`: what prompt and answer must fit; None: by the model's config."""
    prompts = prompts_for(processor, tokens, architecture_named(model.config.model_type).prompt)
    return Prepared(model, prompts, samples, hold, max_positions)


def _max_positions(model: nn.Module) -> int:
    config = model.config.to_dict()
    return architecture_of(config).settings(config).max_positions


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    prepared: Prepared,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    metric: Grade = EXACT_MATCH,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask every question of `prepared` and compare. The model runs as it is now: k set, blocks masked, or neither.

    Answers end with an end token or after `max_new_tokens`. `progress` is told the number of samples done. Every
    sample must have what the metric compares with: see `check_samples`.
    """
    check_samples(prepared.samples, metric)
    ends = prepared.prompts.ends(model)
    answers = [""] * len(prepared.samples)
    local = attends_locally(getattr(find_decoder(model), "config", None))
    for group, embeddings in prepared.prefixes():
        length = embeddings.shape[1]
        prepared.check_room(group, length, max_new_tokens)
        cache = prefill(model, embeddings)
        longest = length + max(len(ids) for _, ids in group.questions) + max_new_tokens
        for batch in _batches(group.questions, rows_that_fit(model, longest), local):
            made = answer_batch(model, cache, [ids for _, ids in batch], ends, max_new_tokens)
            for (index, _), ids in zip(batch, made, strict=True):
                answers[index] = prepared.prompts.text(ids)
            if progress:
                progress(len(batch))
    scores = [metric(answer, s) for answer, s in zip(answers, prepared.samples, strict=True)]
    kinds = sorted({s.kind for s in prepared.samples if s.kind is not None})
    by_kind = {
        kind: Share.of([score for score, s in zip(scores, prepared.samples, strict=True) if s.kind == kind])
        for kind in kinds
    }
    total = Share.of(scores)
    return Evaluation(total.accuracy, total.stderr, total.samples, by_kind, tuple(answers), tuple(scores))


def _batches(questions: Sequence[Question], rows: int, local: bool) -> Iterator[Sequence[Question]]:
    """Up to `rows` questions at a time; where blocks attend to the last tokens alone, of one length: padding between a
    question and its answer would count among these."""
    lengths = groupby(sorted(questions, key=lambda q: len(q[1])), key=lambda q: len(q[1]))
    for alike in [list(group) for _, group in lengths] if local else [questions]:
        for start in range(0, len(alike), rows):
            yield alike[start : start + rows]


def evaluate_plan(
    plan: Plan,
    samples: Iterable[Sample],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    metric: Grade = EXACT_MATCH,
    say: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> Evaluation:
    """Load the plan's source in float32 and evaluate it with the plan's knobs at run time, picture by picture.

    Every picture is looked at first, so that a damaged one is refused before anything is asked.
    """
    samples = tuple(samples)
    check_samples(samples, metric)
    processor = load_processor(plan.source)
    say("look at the samples")
    positions = plan.source.settings.max_positions
    look(samples, prompts_for(processor, plan.knobs.tokens, plan.source.architecture.prompt), positions, max_new_tokens)
    say("load")
    model = load_model(plan.source.path)
    prepared = prepare(model, processor, samples, plan.knobs.tokens, hold=False)
    say("evaluate")
    with knobs_at_run_time(model, plan.keep_blocks, plan.target.settings.top_k):
        return evaluate(model, prepared, max_new_tokens=max_new_tokens, metric=metric, progress=progress)
