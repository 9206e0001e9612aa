"""What the gate feeds to both sides: short token sequences, deterministic.

An expert choice is decided by the gap between the k-th and the next router probability. Where that gap is smaller
than what float32 can tell apart, two correct programs may choose differently: such a probe proves nothing, so
another seed is taken. Prompts are longer than the windows of blocks that attend to the last tokens alone, or such a
window would prove nothing either; what lies beyond longer windows is `far.py`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from export.gate.far import BEYOND, PADDING, FarProbe
from transform.architectures.graph_facts import Routing, Scores
from transform.checkpoint import Checkpoint
from transform.graphs import why_no_graphs
from transform.runtime import find_routers

PROMPT, DECODE = 14, 4
MOST_WINDOW = 512  # no prompt passes windows beyond: one of thousands would take longer than all else
MIN_MARGIN = 2e-7  # router probabilities of two correct programs differ by about 1e-8
SEEDS = range(40)
PLAIN = Routing()
Outputs: TypeAlias = tuple[torch.Tensor, ...] | torch.Tensor  # of a router: logits first, or alone


@dataclass(frozen=True)
class TextProbe:
    """`ids` [1, prompt + DECODE]; `batch` [2, prompt], padded on the left in the first row, on the right in the second.

    Only the left one tells a decoder that heeds its mask: what stands on the right is hidden by causality as well.
    """

    seed: int
    ids: torch.Tensor
    batch: torch.Tensor
    mask: torch.Tensor
    far: FarProbe | None = None  # where windows are longer than the prompt

    @property
    def prompt(self) -> int:
        """How many tokens of `ids` are given at once."""
        return self.batch.shape[1]


def prompt_length(windows: Sequence[int | None]) -> int:
    """Tokens that reach beyond every window that a probe can pass."""
    passed = [window + BEYOND for window in windows if window is not None and window <= MOST_WINDOW]
    return max([PROMPT, *passed])


def text_probe(vocab: int, seed: int, prompt: int = PROMPT) -> TextProbe:
    """Tokens drawn uniformly from the ordinary ids."""
    generator = np.random.Generator(np.random.PCG64(seed))
    ids = torch.from_numpy(generator.integers(0, vocab - 1, (1, prompt + DECODE)))
    batch = torch.from_numpy(generator.integers(0, vocab - 1, (2, prompt)))
    mask = torch.ones(2, prompt, dtype=torch.int64)
    mask[0, :PADDING] = mask[1, -PADDING:] = 0
    return TextProbe(seed, ids, batch * mask, mask)


class MarginWatch:
    """Context manager: the smallest gap between what chose the k-th expert and the next one, seen meanwhile.

    `routing`: how the routers choose. `mask` [b, s] of the next call: what a masked position chooses reaches nobody. A
    padding token's embedding often is zero, between whose experts no program can decide.
    """

    def __init__(self, model: torch.nn.Module, routing: Routing | None = PLAIN) -> None:
        self.model, self.routing, self.smallest = model, routing, float("inf")
        self.mask: torch.Tensor | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "MarginWatch":
        for router, _ in find_routers(self.model):
            if type(getattr(router, "top_k", None)) is not int:
                continue  # it reads its number from the config, and no graph is compared with it
            self._handles.append(router.register_forward_hook(self._look))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _look(self, router: torch.nn.Module, _inputs: object, outputs: Outputs) -> None:
        gaps = margins(router, outputs, self.routing)
        if self.mask is not None:
            gaps = gaps[self.mask.reshape(-1) == 1]
        self.smallest = min(self.smallest, float(gaps.min()))


def routing_of(checkpoint: Checkpoint) -> Routing | None:
    """How a checkpoint's routers choose; None where it has no graphs, and nobody asks."""
    return None if why_no_graphs(checkpoint) else checkpoint.graph.routing


def margins(router: torch.nn.Module, outputs: Outputs, routing: Routing | None = PLAIN) -> torch.Tensor:
    """Per token of a router's call, the gap between what chose its k-th expert and the next one, and between the last
    group of experts that it may choose from and the next; infinite where all are chosen."""
    logits = (outputs[0] if isinstance(outputs, tuple) else outputs).float().flatten(0, -2)
    k = getattr(router, "top_k", None)
    if routing is None or type(k) is not int or k > logits.shape[-1]:
        # no graph is compared, its number is in the config, or it gives no score per expert
        return torch.full(logits.shape[:1], torch.inf)
    choice = torch.sigmoid(logits) if routing.scores is Scores.SIGMOID else torch.softmax(logits, -1)
    for name, correction in (*router.named_parameters(), *router.named_buffers()):
        if name.endswith("correction_bias"):
            choice = choice + correction.detach().float().reshape(-1)
    gaps = torch.full(choice.shape[:1], torch.inf)
    if routing.groups is not None:
        count, taken = routing.groups
        grouped = choice.reshape(len(choice), count, -1)
        best = grouped.topk(2, -1).values.sum(-1)
        ranked = best.sort(-1, descending=True).values
        gaps = ranked[:, taken - 1] - ranked[:, taken]
        choice = grouped.masked_fill((best < ranked[:, taken - 1 : taken]).unsqueeze(-1), -torch.inf).flatten(1)
    if k == choice.shape[-1]:
        return gaps
    top = choice.topk(k + 1, -1).values
    return torch.minimum(gaps, top[:, -2] - top[:, -1])
