"""Router mass kept at k: how much of the router's probability goes to the k experts that a token gets.

    score_i = mean_t sum of the k largest softmax(W x_t)

0..1; k: what the model has, or a smaller one that is considered. A high mass says that k experts carry nearly
everything, so the block bears a smaller k; models that don't renormalise (MolmoE, OLMoE) lose the rest of the mass.
Read for blocks, higher = less important. Softmax routing as in OLMoE, arXiv:2409.02060.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from importance.calling import ScoringError
from importance.engine import Step
from importance.metrics._stream import Stream
from transform.runtime import find_routers


@dataclass
class RouterMass(Stream):
    """A watcher: mass of the k likeliest experts, of each token. k None: the router's own."""

    k: int | None = None

    def per_token(self, step: Step) -> Tensor:
        """[B, S]."""
        routers = find_routers(step.block)
        if len(routers) != 1:
            raise ScoringError(f"router mass needs one router per block, this block has {len(routers)}.")
        router = routers[0][0]
        seen: list[Tensor] = []
        handle = router.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
        try:
            step.again()
        finally:
            handle.remove()
        rows, size = step.state.chunk.positions.shape
        logits = F.linear(seen[0].reshape(-1, router.weight.shape[1])[: rows * size], router.weight)
        probabilities = logits.double().softmax(-1)
        kept = min(self.k or router.top_k, probabilities.shape[-1])
        return torch.topk(probabilities, kept, dim=-1).values.sum(-1).view(rows, size)


watcher = RouterMass
