"""Attention entropy: how widely a block's attention looks around, from its real attention weights.

    score_i = mean over heads and tokens t of H(a_t) / log(n_t),   H(a) = -sum_j a_j log a_j,   n_t: keys t may see

0 (one key) .. 1 (all alike). Higher counts as more important by assumption: whether that holds is for a comparison with
the accuracy drop to say. Tokens that see one key only are left out. Weights are computed again with
the eager attention, since fused kernels never show them.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from importance.ablation import chunks_of, watch
from importance.calling import ScoringError
from importance.chunks import Batch
from importance.engine import Step
from importance.metrics._stream import Stream


class AttentionEntropy(Stream):
    """A watcher: normalised entropy of each token, averaged over heads."""

    def per_token(self, step: Step) -> Tensor:
        """[B, S]; NaN where a token sees a single key."""
        with _weights(step.block) as seen:
            step.again()
        weights = seen[0][: len(step.state.hidden)].double()  # [B, heads, S, S]
        entropy = -torch.xlogy(weights, weights).sum(-1).mean(1)
        keys = step.state.chunk.allowed.sum(-1)
        return torch.where(keys > 1, entropy / keys.clamp(min=2).double().log(), torch.nan)


@contextmanager
def _weights(block: nn.Module) -> Iterator[list[Tensor]]:
    """The attention weights of the calls inside, one tensor each."""
    attention = getattr(block, "self_attn", None)
    config = getattr(attention, "config", None)
    if attention is None or config is None:
        raise ScoringError(
            f"attention entropy needs blocks with a self_attn that has a config: {type(block).__name__} has none. "
            "Use another metric."
        )
    seen: list[Tensor] = []
    handle = attention.register_forward_hook(lambda _module, _inputs, output: seen.append(output[1]))
    before = config._attn_implementation
    try:
        config._attn_implementation = "eager"
        yield seen
    finally:
        config._attn_implementation = before
        handle.remove()


watcher = AttentionEntropy


def compute_attention_importance(model: nn.Module, batches: Batch | Iterable[Batch]) -> list[float]:
    """One score per block, over the rows of a batch or of several."""
    return watch(model, chunks_of(model, batches), AttentionEntropy())
