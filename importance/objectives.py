"""What a configuration loses on each sample. One class per objective; lower is better; each sample counts once.

`read(state, logits)` is called for every finished state, the full model's first in each chunk, and gives
{sample: loss}. A drop is always paired: loss of the sample without the block minus its loss with it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor, nn

from importance.blocks import Blocks
from importance.chunks import Chunk
from importance.engine import State
from importance.greedy import greedy_answers


class Objective(Protocol):
    """labels: it compares with the samples' answers. remembers: the engine must keep keys and values.
    compares: with the full model's logits, which must come first of each chunk."""

    name: ClassVar[str]
    unit: ClassVar[str]
    labels: ClassVar[bool]
    remembers: ClassVar[bool]
    compares: ClassVar[bool]

    def read(self, state: State, logits: Tensor) -> Mapping[int, float]:
        """The loss of every sample of the chunk."""


def _likelihoods(state: State, logits: Tensor) -> dict[int, list[float]]:
    """{sample: mean log-probability of the tokens of each of its candidates, in their order}."""
    logp = logits.double().log_softmax(-1)
    found: dict[int, list[float]] = {}
    for candidate in state.chunk.candidates:
        value = logp[list(candidate.at[: len(candidate.ids)]), list(candidate.ids)].mean().item()
        found.setdefault(candidate.sample, []).append(value)
    return found


@dataclass
class NegativeLogLikelihood:
    """Mean over an answer's tokens, the end token included, of -log p(token | what comes before); of several accepted
    answers the likeliest counts. Nats per token, 0 and up."""

    name: ClassVar[str] = "nll"
    unit: ClassVar[str] = "nats per answer token"
    labels: ClassVar[bool] = False  # the full model's own answers where samples have none
    remembers: ClassVar[bool] = False
    compares: ClassVar[bool] = False

    def read(self, state: State, logits: Tensor) -> dict[int, float]:
        """The loss of every sample of the chunk."""
        return {sample: -max(values) for sample, values in _likelihoods(state, logits).items()}


@dataclass
class Divergence:
    """Mean over the answer's positions of KL(full || this) = sum p_full (log p_full - log p). Nats, 0 and up."""

    name: ClassVar[str] = "kl"
    unit: ClassVar[str] = "nats per answer token"
    labels: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    compares: ClassVar[bool] = True
    _full: Tensor | None = None
    _chunk: Chunk | None = None

    def read(self, state: State, logits: Tensor) -> dict[int, float]:
        """The loss of every sample of the chunk; the full model's is 0."""
        logp = logits.double().log_softmax(-1)
        if state.chunk is not self._chunk:
            self._full, self._chunk = logp, state.chunk
        assert self._full is not None
        kl = (self._full.exp() * (self._full - logp)).sum(-1).clamp(min=0)
        places: dict[int, set[int]] = {}
        for candidate in state.chunk.candidates:
            places.setdefault(candidate.sample, set()).update(candidate.at)
        return {sample: kl[sorted(at)].mean().item() for sample, at in places.items()}


@dataclass
class TeacherForced:
    """1 - accuracy, where a sample is right if greedy decoding would give exactly the tokens of an accepted answer, and
    then any of `ends`.

    Read from one pass over the answers: needs no decoding, so it also works where blocks are read from disk. Stricter
    than a task metric, which forgives spelling.
    """

    ends: frozenset[int] = frozenset()
    name: ClassVar[str] = "teacher_forced"
    unit: ClassVar[str] = "accuracy, 0..1"
    labels: ClassVar[bool] = True
    remembers: ClassVar[bool] = False
    compares: ClassVar[bool] = False

    def read(self, state: State, logits: Tensor) -> dict[int, float]:
        """0 for a right sample, 1 for a wrong one."""
        best = logits.argmax(-1).tolist()
        found: dict[int, float] = {}
        for candidate in state.chunk.candidates:
            made = [best[place] for place in candidate.at[: len(candidate.ids)]]
            wanted = list(candidate.ids)
            right = made[:-1] == wanted[:-1] and (made[-1] == wanted[-1] or {made[-1], wanted[-1]} <= self.ends)
            found[candidate.sample] = min(found.get(candidate.sample, 1.0), 0.0 if right else 1.0)
        return found


@dataclass
class LikeliestChoice:
    """1 - accuracy of choosing the likeliest of the sample's choices, by the mean log-probability of their tokens.

    `right[sample]`: which of its candidates are right, by position.
    """

    right: Mapping[int, frozenset[int]]
    name: ClassVar[str] = "choice"
    unit: ClassVar[str] = "accuracy, 0..1"
    labels: ClassVar[bool] = True
    remembers: ClassVar[bool] = False
    compares: ClassVar[bool] = False

    def read(self, state: State, logits: Tensor) -> dict[int, float]:
        """0 for a right sample, 1 for a wrong one; of equal choices the first counts."""
        return {
            sample: 0.0 if values.index(max(values)) in self.right[sample] else 1.0
            for sample, values in _likelihoods(state, logits).items()
        }


@dataclass
class Generated:
    """1 - task score of the greedy answer, as `evaluate` finds it: exact match, VQA score, any of `tasks.METRICS`.

    blocks: the engine's. grade: (answer's ids, sample) -> 0..1.
    """

    blocks: Blocks
    grade: Callable[[Sequence[int], int], float]
    model: nn.Module
    ends: frozenset[int]
    max_new_tokens: int
    name: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "accuracy, 0..1"
    labels: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    compares: ClassVar[bool] = False
    answers: dict[int, tuple[int, ...]] = field(default_factory=dict)  # of the state read last

    def read(self, state: State, logits: Tensor) -> dict[int, float]:
        """1 - grade of every sample."""
        made = greedy_answers(self.blocks, state, logits, self.model, self.ends, self.max_new_tokens)
        self.answers = {sample: tuple(ids) for sample, ids in made.items()}
        return {sample: 1.0 - self.grade(ids, sample) for sample, ids in made.items()}
