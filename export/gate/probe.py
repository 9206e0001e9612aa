"""What the gate feeds to both sides: short token sequences, deterministic.

An expert choice is decided by the gap between the k-th and the next router probability. Where that gap is smaller
than what float32 can tell apart, two correct programs may choose differently: such a probe proves nothing, so
another seed is taken.
"""

from dataclasses import dataclass

import numpy as np
import torch

from transform.runtime import find_routers

PROMPT, DECODE = 14, 4
PADDING = 5
MIN_MARGIN = 2e-7  # router probabilities of two correct programs differ by about 1e-8
SEEDS = range(40)


@dataclass(frozen=True)
class TextProbe:
    """`ids` [1, PROMPT + DECODE]; `batch` [2, PROMPT], padded on the left in the first row, on the right in the second.

    Only the left one tells a decoder that heeds its mask: what stands on the right is hidden by causality as well.
    """

    seed: int
    ids: torch.Tensor
    batch: torch.Tensor
    mask: torch.Tensor


def text_probe(vocab: int, seed: int) -> TextProbe:
    """Tokens drawn uniformly from the ordinary ids."""
    generator = np.random.Generator(np.random.PCG64(seed))
    ids = torch.from_numpy(generator.integers(0, vocab - 1, (1, PROMPT + DECODE)))
    batch = torch.from_numpy(generator.integers(0, vocab - 1, (2, PROMPT)))
    mask = torch.ones(2, PROMPT, dtype=torch.int64)
    mask[0, :PADDING] = mask[1, -PADDING:] = 0
    return TextProbe(seed, ids, batch * mask, mask)


class MarginWatch:
    """Context manager: the smallest gap between the k-th and the (k+1)-th router probability seen meanwhile.

    `mask` [b, s] of the next call: what a masked position chooses reaches nobody. A padding token's embedding often is
    zero, between whose experts no program can decide.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.smallest = model, float("inf")
        self.mask: torch.Tensor | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "MarginWatch":
        for router, _ in find_routers(self.model):
            self._handles.append(router.register_forward_hook(self._look))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _look(self, router: torch.nn.Module, _inputs: object, outputs: tuple[torch.Tensor, ...]) -> None:
        gaps = margins(router, outputs)
        if self.mask is not None:
            gaps = gaps[self.mask.reshape(-1) == 1]
        self.smallest = min(self.smallest, float(gaps.min()))


def margins(router: torch.nn.Module, outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Per token of a router's call, the gap between the k-th and the next probability; infinite where k is all."""
    probabilities = torch.softmax(outputs[0].float(), -1).flatten(0, -2)
    if router.top_k >= probabilities.shape[-1]:
        return torch.full(probabilities.shape[:1], torch.inf)
    top = probabilities.topk(int(router.top_k) + 1, -1).values
    return top[:, -2] - top[:, -1]
