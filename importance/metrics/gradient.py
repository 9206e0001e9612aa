"""First-order Taylor estimate of what dropping a block costs, without dropping it: one pass forward, one back.

    score_i = mean over samples of sum_t <dL/dy_t, x_t - y_t>,   x, y: the stream before and behind block i

L: negative log-likelihood of the answer, nats per token. Dropping block i replaces y by x, so this is the linear term
of L(without i) - L(full); higher = more important. Signed, and free of the size of the weights, unlike a sum of
absolute gradients. After Molchanov et al., Importance Estimation for Neural Network Pruning, arXiv:1906.10771.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from importance.ablation import chunks_of
from importance.around import Masks
from importance.blocks import Blocks, ResidentBlocks
from importance.calling import ScoringError, at_k, call
from importance.chunks import Batch, Chunk
from importance.configurations import Config
from importance.engine import full_config
from importance.samples import SamplesError
from importance.self_check import insist_on_agreement

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits [T, V], ids [T]) -> scalar: the loss of one answer."""
LOSS: Loss = torch.nn.functional.cross_entropy


def compute_gradient_importance(
    model: nn.Module, batches: Batch | Iterable[Batch], loss_fn: Loss | None = None
) -> list[float]:
    """One score per block, from batches with `labels`. `loss_fn`: of one row's logits [T, V] and labels [T]; by default
    cross-entropy."""
    chunks = chunks_of(model, batches, labels="gradient")
    values, counts = taylor(ResidentBlocks(model), full_config(model), chunks, loss_fn or LOSS)
    return [sum(block) / sum(counts) for block in values]


def taylor(
    blocks: Blocks, full: Config, chunks: Iterable[Chunk], loss_fn: Loss = LOSS
) -> tuple[list[list[float]], list[int]]:
    """For every block one value per chunk, summed over its samples; and how many samples each chunk has. Needs the
    whole model in memory; `full`: experts per token in each block."""
    values: list[list[float]] = [[] for _ in range(blocks.layers)]
    counts = []
    for chunk in chunks:
        insist_on_agreement(blocks, chunk, full, remember=False)
        counts.append(len(chunk.samples))
        with torch.enable_grad():
            streams = [blocks.around.entering(chunk.hidden).detach().clone().requires_grad_()]
            masks = Masks(chunk.allowed, chunk.positions, chunk.positions, chunk.hidden.dtype)
            rotary = blocks.rotary(chunk.hidden, chunk.positions)
            for index in range(blocks.layers):
                with blocks.block(index) as block, at_k(block, full[index]):
                    mask = masks.of(blocks.around.windows[index])
                    streams.append(call(block, streams[-1], mask, chunk.positions, rotary))
            with blocks.head() as head:
                logits = head(streams[-1].flatten(0, 1)[chunk.where]).double()
            gradients = torch.autograd.grad(_loss(chunk, logits, loss_fn), streams[1:])
        for index, gradient in enumerate(gradients):
            change = (streams[index] - streams[index + 1]).double()
            value = (gradient.double() * change).sum().item()
            if value != value:
                raise ScoringError("gradients must be numbers, this model gives NaN. Its weights are damaged.")
            values[index].append(value)
    return values, counts


def _loss(chunk: Chunk, logits: Tensor, loss_fn: Loss) -> Tensor:
    """Summed over samples; of several accepted answers the likeliest counts."""
    least: dict[int, Tensor] = {}
    for candidate in chunk.candidates:
        if not candidate.ids:
            raise SamplesError(f"gradients need answers, sample {candidate.sample} has none. Use the metric kl.")
        ids = torch.tensor(candidate.ids, device=logits.device)
        loss = loss_fn(logits[list(candidate.at[: len(ids)])], ids)
        if candidate.sample not in least or loss < least[candidate.sample]:
            least[candidate.sample] = loss
    return torch.stack(list(least.values())).sum()
