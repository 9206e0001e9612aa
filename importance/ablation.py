"""Single-block ablation and watching, on chunks of a model in memory: what the metrics' own functions are made of."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from importance.blocks import Blocks, ResidentBlocks
from importance.chunks import Batch, Chunk, from_batch
from importance.configurations import Config, without
from importance.engine import Engine, Report, State, Step, full_config
from importance.objectives import Objective
from importance.samples import SamplesError


@dataclass(frozen=True)
class Ablation:
    """losses [1 + L, n]: of the full model, then without each block."""

    losses: np.ndarray
    report: Report

    @property
    def drops(self) -> np.ndarray:
        """[L, n]: what each sample loses without each block."""
        return self.losses[1:] - self.losses[0]


class Watching(Protocol):
    """A watcher that keeps values per block."""

    values: dict[int, list[float]]

    def __call__(self, step: Step) -> None:
        """See `engine.Watcher`."""


def single_ablations(full: Config) -> list[Config]:
    """The full model, then one configuration without each block."""
    return [full, *(without(full, [block]) for block in range(len(full)))]


def ablate(model: nn.Module, chunks: Iterable[Chunk], objective: Objective) -> Ablation:
    """The full model and every single-block ablation on all samples of the chunks."""
    full = full_config(model)
    engine = Engine(ResidentBlocks(model), full, remember=objective.remembers)
    losses = measure(engine, chunks, single_ablations(full), objective)
    return Ablation(losses, engine.report)


def measure(
    engine: Engine, chunks: Iterable[Chunk], configs: Sequence[Config], objective: Objective, together: bool = False
) -> np.ndarray:
    """Losses [len(configs), samples] float64, the samples by their numbers, which must run from 0."""
    asked = list(dict.fromkeys([engine.full, *configs] if objective.compares else configs))
    columns: dict[int, np.ndarray] = {}

    def read(state: State, logits: Tensor) -> None:
        for sample, loss in objective.read(state, logits).items():
            columns.setdefault(sample, np.full(len(asked), np.nan))[state.configs] = loss

    engine.run(chunks, asked, read, together)
    if not columns:
        raise SamplesError("at least one sample is needed, got 0.")
    losses = np.stack([columns.get(n, np.full(len(asked), np.nan)) for n in range(max(columns) + 1)], 1)
    missing = int(np.isnan(losses).any(0).sum())
    if missing:
        raise SamplesError(f"every sample must be scored: {missing} of {losses.shape[1]} were not.")
    row = {config: n for n, config in enumerate(asked)}
    return losses[[row[config] for config in configs]]


def watch(model: nn.Module, chunks: Iterable[Chunk], watcher: Watching) -> list[float]:
    """The mean of a watcher's values, one per block."""
    observe(ResidentBlocks(model), full_config(model), chunks, [watcher])
    return [float(np.mean(watcher.values[block])) for block in sorted(watcher.values)]


def observe(
    blocks: Blocks, full: Config, chunks: Iterable[Chunk], watchers: Sequence[Watching], together: bool = False
) -> Report:
    """Run the full model once, with watchers."""
    engine = Engine(blocks, full, watchers=watchers)
    engine.run(chunks, [full], lambda _state, _logits: None, together)
    return engine.report


def chunks_of(
    model: nn.Module,
    batches: Batch | Iterable[Batch],
    limit: int | None = None,
    labels: str | None = None,
) -> Iterator[Chunk]:
    """Chunks of a batch or of several, one at a time, at most `limit` rows. `labels`: which metric needs them."""
    given: Iterable[Batch] = [batches] if isinstance(batches, Mapping) else batches
    taken = 0
    for batch in given:
        if labels is not None and batch.get("labels") is None:
            raise SamplesError(
                f"{labels} needs labels, a batch has none. Add them, or use a metric without, such as kl."
            )
        size = len(batch.get("input_ids", ()))
        rows = size if limit is None else min(size, limit - taken)
        if limit is not None and taken >= limit:
            break
        cut = {name: value[:rows] for name, value in batch.items() if value is not None}
        yield from_batch(model, cut, taken)
        taken += rows
    if not taken:
        raise SamplesError("at least one row is needed, got 0 batches.")
