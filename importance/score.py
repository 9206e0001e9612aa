"""`knobcast score`: which blocks matter, on the user's own samples.

    scores = Scorer(Setting(checkpoint, data), store).scores()

The work is cut into shards of samples (`shards.py`), each a job with a kept result (`jobs.py`); here they are put
together again: scores with paired statistics, and the `measure` that searches over sets of blocks ask.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from importance.ablation import single_ablations
from importance.configurations import Config, block_evaluations, naive_block_evaluations
from importance.engine import LIVE_BYTES
from importance.jobs import Submits, run_jobs, unpack
from importance.look import look
from importance.metrics import Metric, metric
from importance.metrics._stream import VISION_WEIGHT
from importance.prompts import load_processor, prompts_for
from importance.readers.read import read_samples
from importance.samples import EncodedImage, Sample, SamplesError, require_answers, samples_digest
from importance.scores import MORE, Scores, model_digest
from importance.shards import run_shard
from importance.spec import Data, Result, Spec
from importance.statistics import Spread
from importance.tasks import check_samples, metric_named
from transform.checkpoint import Checkpoint
from transform.errors import KnobError
from transform.knobs import Knobs, merged_k
from transform.plan import make_plan
from transform.progress import Progress

SCORINGS = ("generate", "likelihood", "choices")
SHARDS = 32  # the work is cut into about so many jobs: as often a stopped run is saved, and the bar moves
MOST_SAMPLES = 64  # of a shard
QUESTION = 128  # positions of the questions about a picture, roughly
STREAMED_BYTES = 640 << 20  # of activations beside one block and the head


@dataclass(frozen=True)
class Setting:
    """What is scored, on what, and how.

    data: a file of samples, or the shards of one split (files, a folder, a pattern), as for `read_samples`.
    metric: a name of `metrics.METRICS`; None: accuracy where the samples have answers, else kl. task: how an answer is
    graded (`tasks.METRICS`). scoring: `generate` greedy answers, `likelihood` (right if greedy decoding would give
    exactly an accepted answer: one pass, no decoding) or `choices` (the likeliest choice). tokens: vision budget. k:
    experts per token while scoring, None for the model's own. streamed: read blocks from disk one at a time.
    """

    checkpoint: Checkpoint
    data: Path | Sequence[Path]
    annotations: Path | None = None
    images: Path | None = None
    limit: int | None = None
    metric: str | None = None
    task: str = "exact_match"
    scoring: str | None = None
    tokens: int | str | None = None
    k: int | None = None
    max_new_tokens: int = 16
    streamed: bool = False
    vision_weight: float | None = VISION_WEIGHT
    tokens_per_call: int | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """What `data` names, as it was given."""
        return (self.data,) if isinstance(self.data, Path) else tuple(self.data)

    @cached_property
    def _read(self) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
        notes: list[str] = []
        where = {"annotations": self.annotations, "images": self.images}
        return tuple(read_samples(self.files, self.limit, **where, say=notes.append)), tuple(notes)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All of them, read once."""
        return self._read[0]

    @property
    def notes(self) -> list[str]:
        """What a user should know about how the samples were taken, a line each."""
        without = self.metric is None and self.chosen.name == "kl"
        told = f"no answers found in {len(self.samples)} samples: measuring kl, which needs none"
        return [*self._read[1], *([told] if without else [])]

    @cached_property
    def labelled(self) -> bool:
        """Whether every sample has answers."""
        return all(sample.answers for sample in self.samples)

    @cached_property
    def chosen(self) -> Metric:
        """The metric."""
        return metric(self.metric or ("accuracy" if any(sample.answers for sample in self.samples) else "kl"))

    @cached_property
    def how(self) -> str:
        """The scoring that is used."""
        found = self.scoring or ("likelihood" if self.streamed else "generate")
        if found not in SCORINGS:
            raise KnobError(f"scoring must be one of {', '.join(SCORINGS)}, got {found!r}. Choose one.")
        if self.streamed and found == "generate" and self.chosen.name == "accuracy":
            raise KnobError(
                "generated answers need the model in memory: each token would read all weights again. Use --scoring "
                "likelihood, or leave --stream out."
            )
        return found

    @cached_property
    def full(self) -> Config:
        """The model as it is scored: experts per token in each block."""
        settings = self.checkpoint.settings
        if self.k is not None and not 1 <= self.k <= max(settings.experts, 1):
            raise KnobError(f"k must be from 1 to the experts, {settings.experts}: got {self.k}. Choose one of these.")
        own = settings.top_k if self.k is None else (self.k,) * settings.layers
        return tuple(k if experts else 1 for k, experts in zip(own, settings.experts_of, strict=True))

    def check(self) -> None:
        """Refuse what can't be scored, before a weight is read."""
        _ = self.full  # which checks k
        if self.chosen.labels or (self.chosen.name in ("nll", "gradient") and self.streamed):
            require_answers(self.samples, f"the metric {self.chosen.name}")
        if self.chosen.kind == "gradient" and self.streamed:
            raise KnobError("gradients need the whole model in memory. Leave --stream out, or use another metric.")
        if self.chosen.name == "accuracy" and self.how == "generate":
            check_samples(self.samples, metric_named(self.task))
        elif self.how == "choices":
            check_samples(self.samples, metric_named("multiple_choice"))
        self._check_modalities()
        if self.vision_weight is not None and not 0 <= self.vision_weight <= 1:
            raise KnobError(f"the weight of vision tokens must be from 0 to 1, got {self.vision_weight}.")

    def look(self) -> None:
        """Open every picture and measure every prompt; refuses what can't be seen, as `evaluate` does."""
        prompts = prompts_for(load_processor(self.checkpoint), self.tokens, self.checkpoint.architecture.prompt)
        look(self.samples, prompts, self.checkpoint.settings.max_positions, 0)

    def _check_modalities(self) -> None:
        if self.checkpoint.architecture.modality.sees_images:
            return
        pictured = next((sample for sample in self.samples if sample.images), None)
        if pictured is not None:
            raise SamplesError(
                f"sample {pictured.id!r}: this model sees no images, the sample has one. Use text-only samples, or a "
                "model with a vision tower."
            )
        if self.tokens is not None:
            raise KnobError(
                f"a vision budget needs a model that is shown pictures here, got {self.tokens}. Leave --tokens out."
            )

    @cached_property
    def groups(self) -> np.ndarray:
        """[n]: samples that share a picture share a number; a sample without one has its own."""
        numbers: dict[object, int] = {}
        found = []
        for index, sample in enumerate(self.samples):
            picture = sample.images[0] if sample.images else None
            key: object = ("alone", index) if picture is None else picture
            if not isinstance(picture, str | Path | EncodedImage | None):
                key = id(picture)
            found.append(numbers.setdefault(key, len(numbers)))
        return np.array(found)

    def shards(self) -> list[list[int]]:
        """The samples of each job, ascending; those of one picture stay together."""
        by_group: dict[int, list[int]] = {}
        for index, group in enumerate(self.groups.tolist()):
            by_group.setdefault(group, []).append(index)
        size = max(1, min(MOST_SAMPLES, -(-len(self.samples) // SHARDS)))
        pictures = MOST_SAMPLES
        if self.streamed:  # as many as one pass over the weights holds, with a state for every ablation
            settings = self.checkpoint.settings
            states = 1 + settings.layers if self.chosen.kind == "ablation" else 1
            size, pictures = MOST_SAMPLES, max(1, STREAMED_BYTES // (4 * settings.hidden * self._length * states))
        found: list[list[list[int]]] = [[]]
        for members in by_group.values():
            if found[-1] and (sum(map(len, found[-1])) + len(members) > size or len(found[-1]) >= pictures):
                found.append([])
            found[-1].append(members)
        return [sorted(index for members in groups for index in members) for groups in found]

    @property
    def _length(self) -> int:
        """About the most positions of a picture with its questions."""
        if not self.checkpoint.architecture.modality.sees_images:
            return QUESTION
        vision = make_plan(self.checkpoint, Knobs(tokens=self.tokens, resize="pad", rule="canvas")).vision
        assert vision is not None
        return max(tiling["image_tokens"] for tiling in vision.as_dict()["tilings"]) + QUESTION

    def references(self) -> str:
        """Which answers the sequences hold."""
        if self.chosen.kind == "observation":
            return "first token"
        if self.how == "choices" and self.chosen.name == "accuracy":
            return "choices"
        if self.labelled:
            return "answers"
        return "first token" if self.streamed else "own"


@dataclass(eq=False)
class Scorer:
    """Runs a setting's jobs. store: where results are kept. progress: told how many samples are done, over and over
    for searches that measure several times."""

    setting: Setting
    store: Path
    executor: Submits | None = None
    progress: Progress | None = None
    report: dict[str, int] = field(default_factory=dict)
    model_digest: str = field(init=False)
    data_digest: str = field(init=False)
    _side: str = field(init=False)

    def __post_init__(self) -> None:
        self.setting.check()
        self.model_digest = model_digest(self.setting.checkpoint)
        self._side = _digest_of_side_files(self.setting.checkpoint)
        self.data_digest = samples_digest(self.setting.samples)

    def measure(self, configs: Sequence[Config]) -> np.ndarray:
        """Losses [len(configs), items] float64, lower is better: of each sample 1 - accuracy, or nats per token.

        Metrics that score blocks alone say nothing about sets, so a set loses the sum of its blocks' scores, for each
        of the items that they are means of.
        """
        if self.setting.chosen.kind != "ablation":
            gone = np.array([[k == 0 for k in config] for config in configs], np.float64)
            return gone @ (self._values if self.setting.chosen.higher_means == MORE else -self._values)
        losses = np.empty((len(configs), len(self.setting.samples)))
        for members, result in self._results("losses", configs=configs):
            losses[:, members] = unpack(result["losses"])
        return losses

    def answers(self, configs: Sequence[Config]) -> list[list[str]]:
        """[len(configs)][samples]: the greedy answer of each configuration, as `evaluate` finds it."""
        found = [[""] * len(self.setting.samples) for _ in configs]
        for members, result in self._results("answers", configs=configs):
            for row, texts in zip(found, result["answers"], strict=True):
                for member, text in zip(members, texts, strict=True):
                    row[member] = text
        return found

    def scores(self) -> Scores:
        """One score per block, with standard errors and 95 % intervals."""
        kind = self.setting.chosen.kind
        return self._ablated() if kind == "ablation" else self._made(self._values, None, baseline=None)

    @property
    def groups(self) -> np.ndarray | None:
        """Which items of `measure` belong together, [items]; None: none do."""
        return self.setting.groups if self.setting.chosen.kind == "ablation" else None

    def _ablated(self) -> Scores:
        configs = single_ablations(self.setting.full)
        losses = self.measure(configs)
        drops = losses[1:] - losses[0]
        accuracy = self.setting.chosen.name == "accuracy"
        mean = float(losses[0].mean())
        if accuracy and mean == 1.0:
            raise SamplesError(
                f"accuracy drops need a model that answers something right: 0 of {losses.shape[1]} answers are, by "
                f"{self.setting.how} and {self.setting.task}. Check the answers and --task, or score by nll or kl."
            )
        return self._made(drops, self.setting.groups, baseline=1 - mean if accuracy else mean)

    @cached_property
    def _values(self) -> np.ndarray:
        """[blocks, items] of a metric that is read off the full model; an item is a picture or a text."""
        kind = self.setting.chosen.kind
        options: dict[str, float | None] = {}
        if self.setting.chosen.vision_weighted:
            options["vision_weight"] = self.setting.vision_weight
        if self.setting.chosen.name == "router_mass":
            options["k"] = self.setting.k
        name = "gradient" if kind == "gradient" else "observe"
        results = self._results(name, options=options)
        parts = [unpack(result["values"]) for _, result in results]
        if name == "gradient":  # sums over a chunk's samples: a chunk counts as often as it has samples
            counts = np.concatenate([result["counts"] for _, result in results]).astype(float)
            values: np.ndarray = np.concatenate(parts, 1) * (len(counts) / counts.sum())
            return values
        return np.concatenate(parts, 1)

    @cached_property
    def _shards(self) -> list[tuple[list[int], str]]:
        """(samples, their digest) of each job. Of its own alone: others may be mended before a stopped run goes on."""
        shards = self.setting.shards()
        return [(members, samples_digest([self.setting.samples[index] for index in members])) for members in shards]

    def _results(
        self,
        kind: str,
        configs: Sequence[Config] = (),
        options: Mapping[str, float | None] | None = None,
    ) -> list[tuple[list[int], Result]]:
        setting = self.setting
        data: Data = {
            "file": [str(file.resolve()) for file in setting.files],
            "annotations": None if setting.annotations is None else str(setting.annotations.resolve()),
            "images": None if setting.images is None else str(setting.images.resolve()),
            "limit": setting.limit,
            "digest": "",
        }
        common = Spec(
            kind, str(setting.checkpoint.path.resolve()), self.model_digest, self._side, setting.chosen.name,
            setting.task, setting.how, setting.tokens, setting.full, setting.max_new_tokens, setting.streamed,
            setting.references(), setting.tokens_per_call, STREAMED_BYTES if setting.streamed else LIVE_BYTES,
            [], data, configs, options or {},
        )  # fmt: skip
        shares = [replace(common, samples=members, data={**data, "digest": own}) for members, own in self._shards]
        specs = [share.as_dict() for share in shares]
        mean = len(setting.samples) / len(specs)
        told = 0.0

        def advance(jobs: int) -> None:
            nonlocal told
            before, told = round(told), told + jobs * mean
            if self.progress is not None:
                self.progress(round(told) - before)

        results = run_jobs(run_shard, specs, self.store, self.executor, advance)
        for result in results:
            for name, value in result["report"].items():
                self.report[name] = self.report.get(name, 0) + value
        return [(members, result) for (members, _), result in zip(self._shards, results, strict=True)]

    def _made(self, values: np.ndarray, groups: np.ndarray | None, baseline: float | None) -> Scores:
        """values [blocks, items]: their means are the scores; groups [items]: items that share a picture."""
        setting, chosen = self.setting, self.setting.chosen
        mean, spread = values.mean(1).tolist(), Spread.of(values, groups)
        k = merged_k(setting.full)
        notes: dict[str, object] = {
            "name": chosen.name,
            "reference": chosen.reference,
            "pictures": len({g for g, s in zip(setting.groups.tolist(), setting.samples, strict=True) if s.images}),
            "tokens": setting.tokens,
            "k": k if isinstance(k, int) else list(k),
            "interval": spread.note,
        }
        if chosen.kind == "ablation":
            configs = single_ablations(setting.full)
            notes |= {
                "answers": {"answers": "accepted", "own": "the full model's own"}.get(
                    setting.references(), setting.references()
                ),
                "block_evaluations": block_evaluations(configs),
                "naive_block_evaluations": naive_block_evaluations(configs),
            }
            if chosen.name == "accuracy":
                notes |= {"scoring": setting.how, "task": setting.task if setting.how == "generate" else setting.how}
        elif chosen.vision_weighted:
            notes["vision_weight"] = setting.vision_weight
        return Scores(
            values=dict(enumerate(mean)),
            metric=chosen.title,
            unit=chosen.unit,
            higher_means=chosen.higher_means,
            stderr=spread.stderr,
            interval=spread.interval,
            baseline=baseline,
            samples=len(setting.samples),
            model_digest=self.model_digest,
            data_digest=self.data_digest,
            notes=notes,
        )


def _digest_of_side_files(checkpoint: Checkpoint) -> str:
    """Of the files beside the weights that decide how prompts and pictures are seen and where answers end."""
    digest = hashlib.sha256()
    for name in (
        "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json",
    ):  # fmt: skip
        file = checkpoint.path / name
        digest.update(name.encode() + (hashlib.sha256(file.read_bytes()).digest() if file.is_file() else b""))
    return digest.hexdigest()
