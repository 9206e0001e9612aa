"""KL divergence from the full model: how differently the model speaks without the block. Needs no labels.

    score_i = mean_s mean_t KL(p_full(. | x_<t) || p_without_i(. | x_<t)),   t over the answer's positions

Nats, 0 and up; higher = more important. The default where samples have no answers; the positions are then those of
the full model's own greedy answer, or the first answer position where blocks are read from disk.
"""

from collections.abc import Iterable

from torch import nn

from importance.ablation import ablate, chunks_of
from importance.chunks import Batch
from importance.objectives import Divergence


def compute_kl_importance(model: nn.Module, batches: Iterable[Batch]) -> list[float]:
    """One score per block, at the labelled positions of the batches, or at each row's last token."""
    chunks = chunks_of(model, batches)
    return ablate(model, chunks, Divergence()).drops.mean(1).tolist()
