"""A share of the work as a job: some samples, some configurations -> losses. What executors run.

A spec says everything the result depends on, so equal specs have equal results, on any machine that sees the files.
Models, samples and embedded pictures stay in the process between jobs.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from importance.ablation import measure, observe
from importance.blocks import Blocks, ResidentBlocks
from importance.chunks import Chunk, pack_chunks
from importance.configurations import Config
from importance.engine import Engine, State
from importance.evaluate import Prepared, prepare
from importance.jobs import pack
from importance.metrics import metric
from importance.objectives import (
    Divergence,
    Generated,
    LikeliestChoice,
    NegativeLogLikelihood,
    Objective,
    TeacherForced,
)
from importance.prompts import Processor, load_processor
from importance.readers.read import read_samples
from importance.samples import Sample, SamplesError, samples_digest
from importance.scores import model_digest
from importance.spec import Result, Spec
from importance.streaming import StreamedBlocks
from importance.tasks import metric_named
from transform.checkpoint import Checkpoint
from transform.errors import KnobError
from transform.load import load_model
from transform.read import read_checkpoint

HELD_BYTES = 2 << 30  # of embedded pictures kept between jobs


def run_shard(raw: dict[str, object]) -> Result:
    """The result of one job; `raw`: a `Spec` as JSON."""
    spec = Spec.parse(raw)
    shard = _Streamed(spec) if spec.streamed else _shard(spec)
    if spec.kind == "losses":
        objective = shard.objective(spec)
        engine = Engine(shard.blocks, spec.full, spec.tokens_per_call, spec.live_bytes, objective.remembers)
        losses = measure(engine, shard.chunks(spec), spec.configs, objective, spec.streamed)
        return {"losses": pack(losses), "report": engine.report.as_dict()}
    if spec.kind == "answers":
        return _answered(spec, shard)
    found = metric(spec.metric)
    if spec.kind == "gradient":
        values, counts = found.module.taylor(shard.blocks, spec.full, shard.chunks(spec))
        return {"values": pack(np.array(values)), "counts": counts, "report": {}}
    watcher = found.module.watcher(**spec.options)
    report = observe(shard.blocks, spec.full, shard.chunks(spec), [watcher], spec.streamed)
    values = [watcher.values[block] for block in sorted(watcher.values)]
    return {"values": pack(np.array(values)), "report": report.as_dict()}


def _answered(spec: Spec, shard: "_Shard") -> Result:
    """What every configuration answers, as `evaluate` finds it; configurations that are equal are computed once."""
    ends = shard.prepared.prompts.ends(shard.model)
    greedy = Generated(shard.blocks, lambda _ids, _sample: 1.0, shard.model, ends, spec.max_new_tokens)
    asked = list(dict.fromkeys(spec.configs))
    texts: list[list[str]] = [[""] * len(shard.samples) for _ in asked]

    def read(state: State, logits: Tensor) -> None:
        greedy.read(state, logits)
        for sample, ids in greedy.answers.items():
            text = shard.prepared.prompts.text(ids)
            for config in state.configs:
                texts[config][sample] = text

    engine = Engine(shard.blocks, spec.full, spec.tokens_per_call, spec.live_bytes, remember=True)
    engine.run(shard.chunks(spec), asked, read)
    row = {config: n for n, config in enumerate(asked)}
    return {"answers": [texts[row[config]] for config in spec.configs], "report": engine.report.as_dict()}


class _Shard:
    """The samples of a spec with the model in memory: what jobs on the same ones share."""

    blocks: Blocks

    def __init__(self, spec: Spec) -> None:
        self.model = _model(spec.model, spec.model_digest)
        self.blocks = ResidentBlocks(self.model)
        self.samples = _samples_of(spec)
        self.prepared: Prepared = prepare(self.model, _processor(spec.model), self.samples, spec.tokens)
        self.references = self._references(spec)

    @property
    def nbytes(self) -> int:
        """Of the embedded prefixes."""
        return sum(prefix.nbytes for _, prefix in self.prepared.prefixes())

    def chunks(self, spec: Spec) -> Iterable[Chunk]:
        """In the order of the pictures."""
        decoded = spec.max_new_tokens if spec.metric == "accuracy" else 1
        apart = not spec.of_configs
        return pack_chunks(self.model, self.prepared, self.references, new_tokens=decoded, apart=apart)

    def objective(self, spec: Spec) -> Objective:
        """By the spec's metric, scoring and task."""
        return objective_of(spec, self.samples, self.prepared, self.model, self.blocks)

    def _references(self, spec: Spec) -> list[list[list[int]]]:
        prompts = self.prepared.prompts
        if spec.references == "choices":
            return [[prompts.answer(self.model, s, choice) for choice in s.choices] for s in self.samples]
        if spec.references == "answers":
            return [
                [prompts.answer(self.model, s, answer) for answer in dict.fromkeys(s.answers)] for s in self.samples
            ]
        if spec.references == "first token":
            return [[] for _ in self.samples]
        return self._own_answers(spec.full, spec.max_new_tokens)

    def _own_answers(self, full: Config, most: int) -> list[list[list[int]]]:
        """What the full model answers, greedily, with the end token where it ends by itself before `most` tokens."""
        ends = self.prepared.prompts.ends(self.model)
        own = Generated(self.blocks, lambda _ids, _sample: 1.0, self.model, ends, most)
        made: dict[int, tuple[int, ...]] = {}
        engine = Engine(self.blocks, full, remember=True)

        def read(state: State, logits: Tensor) -> None:
            own.read(state, logits)
            made.update(own.answers)

        nothing: list[list[list[int]]] = [[] for _ in self.samples]
        engine.run(pack_chunks(self.model, self.prepared, nothing, new_tokens=most), [full], read)
        end = self.prepared.prompts.end(self.model)
        return [
            [answer] if (answer := [*made[sample], *(end if len(made[sample]) < most else [])]) else []
            for sample in range(len(self.samples))
        ]


class _Streamed(_Shard):
    """The samples of a spec with the blocks read from the checkpoint."""

    blocks: StreamedBlocks

    def __init__(self, spec: Spec) -> None:
        checkpoint = read_checkpoint(Path(spec.model))
        _same_model(checkpoint, spec.model_digest)
        self.blocks = StreamedBlocks(checkpoint)
        self.model = self.blocks.model
        self.samples = _samples_of(spec)
        self.prepared = prepare(
            self.model,
            _processor(spec.model),
            self.samples,
            spec.tokens,
            hold=False,
            max_positions=checkpoint.settings.max_positions,
        )
        self.references = self._references(spec)

    def chunks(self, spec: Spec) -> list[Chunk]:
        """All of them, after which the vision tower isn't needed any more."""
        found = list(super().chunks(spec))
        self.blocks.forget_inputs()
        return found


def objective_of(
    spec: Spec, samples: Sequence[Sample], prepared: Prepared, model: nn.Module, blocks: Blocks
) -> Objective:
    """What `metric` and `scoring` of a spec stand for."""
    if spec.metric == "nll":
        return NegativeLogLikelihood()
    if spec.metric == "kl":
        return Divergence()
    if spec.metric != "accuracy":
        raise KnobError(f"sets of blocks are measured by accuracy, nll or kl; {spec.metric!r} scores blocks alone.")
    if spec.scoring == "choices":
        return LikeliestChoice(dict(enumerate(_right_choices(samples))))
    if spec.scoring == "likelihood":
        return TeacherForced(prepared.prompts.ends(model))
    task, prompts = metric_named(spec.task), prepared.prompts
    return Generated(
        blocks,
        lambda ids, sample: task(prompts.text(ids), samples[sample]),
        model,
        prompts.ends(model),
        spec.max_new_tokens,
    )


def _right_choices(samples: Sequence[Sample]) -> list[frozenset[int]]:
    graded = metric_named("multiple_choice")
    found = []
    for sample in samples:
        right = frozenset(n for n, choice in enumerate(sample.choices) if graded(choice, sample) == 1.0)
        if not right:
            raise SamplesError(f"sample {sample.id!r}: none of its choices is an accepted answer. Correct the sample.")
        found.append(right)
    return found


def _samples_of(spec: Spec) -> list[Sample]:
    data = spec.data
    everything = _samples(tuple(data["file"]), data["annotations"], data["images"], data["limit"])
    found = [everything[index] for index in spec.samples if index < len(everything)]
    if samples_digest(found) != data["digest"]:
        _samples.cache_clear()
        raise SamplesError(
            f"{', '.join(data['file'])}: samples must stay as they are while they are scored; these changed. Start "
            "again."
        )
    return found


@lru_cache(maxsize=2)
def _samples(
    files: tuple[str, ...], annotations: str | None, images: str | None, limit: int | None
) -> tuple[Sample, ...]:
    return tuple(read_samples(files, limit, annotations=annotations, images=images))


@lru_cache(maxsize=1)
def _model(path: str, digest: str) -> nn.Module:
    _same_model(read_checkpoint(Path(path)), digest)
    return load_model(Path(path))


def _same_model(checkpoint: Checkpoint, digest: str) -> None:
    if model_digest(checkpoint) != digest:
        raise SamplesError(
            f"{checkpoint.path}: the model must stay as it is while it is scored; it changed. Start again."
        )


@lru_cache(maxsize=1)
def _processor(path: str) -> Processor:
    return load_processor(read_checkpoint(Path(path)))


_HELD: "OrderedDict[str, _Shard]" = OrderedDict()  # of this process, the one used last at the end


def forget() -> None:
    """Free what jobs of this process have kept for others: models, samples, embedded pictures."""
    _HELD.clear()
    for kept in (_model, _samples, _processor):
        kept.cache_clear()


def _shard(spec: Spec) -> _Shard:
    """From the last jobs on the same samples, if it is still there. All that a shard depends on is in its key."""
    names = ("model", "model_digest", "side", "data", "samples", "tokens", "references", "full", "max_new_tokens")
    key = repr([getattr(spec, name) for name in names])
    if key in _HELD:
        _HELD.move_to_end(key)
        return _HELD[key]
    made = _Shard(spec)
    _HELD[key] = made
    if len(_HELD) > 1 and sum(shard.nbytes for shard in _HELD.values()) > HELD_BYTES:
        _HELD.popitem()  # the newest: searches go through all shards again and again, so the first ones stay
    return made
