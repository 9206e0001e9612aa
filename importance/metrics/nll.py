"""Answer negative log-likelihood: how much less likely the right answers become without the block.

    score_i = mean_s [nll(s, without i) - nll(s, full)],   nll(s) = -(1/T) sum_t log p(a_t | picture, question, a_<t)

a: the accepted answer that is likeliest, with the end token; T: its tokens. Nats per token, any sign; higher = more
important. Finer than accuracy: every sample moves it, not only those whose answer flips. Without labels the full
model's own greedy answers take their place.
"""

from collections.abc import Iterable

from torch import nn

from importance.ablation import ablate, chunks_of
from importance.chunks import Batch
from importance.objectives import NegativeLogLikelihood


def compute_nll_importance(model: nn.Module, batches: Iterable[Batch]) -> list[float]:
    """One score per block, from batches with `labels` [B, S], -100 where nothing is scored."""
    chunks = chunks_of(model, batches, labels="nll")
    return ablate(model, chunks, NegativeLogLikelihood()).drops.mean(1).tolist()
