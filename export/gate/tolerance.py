"""What a difference between two float32 programs is measured by. No torch."""

from typing import TYPE_CHECKING

from transform.arrays import Array

if TYPE_CHECKING:
    import torch

# Differences grow with the values: 2e-7 to 3.4e-6 of the largest logit in all forms, from 1 to 16 blocks, widths of 64
# to 2048, logits of 0.4 to 20. Small logits need no more room than large ones; the floor is for outputs near 0.
LEAST_SCALE = 1.0


def scale_of(values: "Array | torch.Tensor") -> float:
    """The largest magnitude of an array or tensor, at least LEAST_SCALE."""
    return max(LEAST_SCALE, float(abs(values).max()))
