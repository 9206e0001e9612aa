"""What the metrics share that are read off the residual stream: means over tokens, one value per row of a chunk.

A picture brings hundreds of tokens and a question a dozen, so a plain mean over tokens speaks of vision alone.
`vision_weight` w gives w * mean over vision tokens + (1 - w) * mean over text tokens; None is the plain mean.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from importance.chunks import PADDING, TEXT, VISION
from importance.engine import Step

VISION_WEIGHT = 0.5


@dataclass
class Stream(ABC):
    """A watcher that keeps, for every block, one value per row (a picture with its questions, or a text)."""

    vision_weight: float | None = VISION_WEIGHT
    values: dict[int, list[float]] = field(default_factory=dict)

    def __call__(self, step: Step) -> None:
        """Take a block's measure; called by the engine for the full model only."""
        found, modality = self.per_token(step), step.state.chunk.modality
        modality = modality.masked_fill(found.isnan(), PADDING)
        values = weighted(found.nan_to_num(), modality, self.vision_weight)
        self.values.setdefault(step.index, []).extend(values)

    @abstractmethod
    def per_token(self, step: Step) -> Tensor:
        """[B, S], one number per token; NaN where it says nothing."""


def weighted(per_token: Tensor, modality: Tensor, vision_weight: float | None) -> list[float]:
    """One mean per row of [B, S] values; a row with one modality only is its plain mean."""
    found = []
    for values, kind in zip(per_token.double(), modality, strict=True):
        vision, text = values[kind == VISION], values[kind == TEXT]
        if vision_weight is None or not len(vision) or not len(text):
            found.append(values[kind != PADDING].mean().item())
        else:
            found.append((vision_weight * vision.mean() + (1 - vision_weight) * text.mean()).item())
    return found


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of the last dimension, in float64: near 1 the metrics are differences of almost equal numbers."""
    a, b = a.double(), b.double()
    norms = (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=torch.finfo(torch.float64).tiny)
    return ((a * b).sum(-1) / norms).clamp(-1, 1)
