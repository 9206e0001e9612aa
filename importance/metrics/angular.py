"""Angular distance: the angle by which blocks turn the stream of the token that answers.

    d(i, n) = arccos(cos(x_i, x_{i+n})) / pi,   x_i: the stream before block i, at the last token of the question

Half-turns, 0..1; high = keep. n = 1 scores blocks, larger n windows of n blocks. Gromov et al., The Unreasonable
Ineffectiveness of the Deeper Layers, arXiv:2403.17887, which takes the last token of the sequence.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from importance.ablation import chunks_of, watch
from importance.chunks import Batch
from importance.engine import Step
from importance.metrics._stream import cosine


@dataclass
class Angular:
    """A watcher. values[i]: distances of window i .. i+n-1, one per row, over its questions."""

    window: int = 1
    values: dict[int, list[float]] = field(default_factory=dict)
    _streams: dict[int, deque[Tensor]] = field(default_factory=dict)  # per chunk: the last ones, at answering tokens

    def __call__(self, step: Step) -> None:
        """Called by the engine block after block."""
        state, first = step.state, {candidate.sample: candidate.at[0] for candidate in step.state.chunk.candidates}
        where = state.chunk.where[list(first.values())]
        start = deque([state.hidden.flatten(0, 1)[where]], maxlen=self.window + 1)
        streams = self._streams.setdefault(state.number, start)
        streams.append(step.after.flatten(0, 1)[where])
        if len(streams) > self.window:
            distance = torch.arccos(cosine(streams[0], streams[-1])) / math.pi
            rows = torch.div(where, state.chunk.positions.shape[1], rounding_mode="floor")
            means = [distance[rows == row].mean().item() for row in rows.unique()]
            self.values.setdefault(step.index + 1 - self.window, []).extend(means)


watcher = Angular


def compute_angular_importance(model: nn.Module, batches: Batch | Iterable[Batch], window: int = 1) -> list[float]:
    """Mean distance of each window of `window` blocks, by its first block: L + 1 - window numbers."""
    return watch(model, chunks_of(model, batches), Angular(window))
