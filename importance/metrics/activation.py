"""Relative update size: how large a block's contribution is beside the stream that it is added to.

    score_i = mean_t |y_t - x_t| / |x_t|,   x, y: the stream before and behind block i

0 and up; high = keep. Not the norm of the output: the residual stream grows with depth, so that norm ranks blocks by
their position.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from importance.ablation import chunks_of, watch
from importance.chunks import Batch
from importance.engine import Step
from importance.metrics._stream import Stream


class Activation(Stream):
    """A watcher: relative update of each token."""

    def per_token(self, step: Step) -> Tensor:
        """[B, S]."""
        before = step.state.hidden.double()
        return (step.after.double() - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-300)


watcher = Activation


def compute_activation_importance(
    model: nn.Module, batches: Batch | Iterable[Batch], num_samples: int = 100
) -> list[float]:
    """One score per block, over at most `num_samples` different rows of a batch or of several."""
    return watch(model, chunks_of(model, batches, limit=num_samples), Activation())
