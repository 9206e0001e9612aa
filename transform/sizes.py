"""Parameters and bytes of a checkpoint, from its headers."""

import math
from collections.abc import Iterator

from transform.checkpoint import Checkpoint
from transform.experts import OF_EXPERTS
from transform.write import written_bytes


def parameters(checkpoint: Checkpoint) -> int:
    """Every stored number."""
    return sum(math.prod(t.shape) for t in checkpoint.tensors.values())


def active_parameters(checkpoint: Checkpoint) -> int:
    """Parameters that one token's way can touch: all but the experts that a block does not select."""
    if not checkpoint.architecture.complete:
        return parameters(checkpoint) - sum(_idle(checkpoint))
    idle = 0
    for i, k in enumerate(checkpoint.settings.top_k):
        expert = sum(math.prod(checkpoint.tensor(f"expert.{part}", i).shape) for part in ("gate", "up", "down"))
        idle += (checkpoint.settings.experts - k) * expert
    return parameters(checkpoint) - idle


def _idle(checkpoint: Checkpoint) -> Iterator[int]:
    """Of each block, the parameters of the experts that a token doesn't choose, however their tensors are laid out."""
    settings = checkpoint.settings
    stored = [0] * settings.layers
    for name, tensor in checkpoint.tensors.items():
        block, part = checkpoint.block_of(name)
        if block is not None and block < settings.layers and OF_EXPERTS.search(part):
            stored[block] += math.prod(tensor.shape)
    for total, experts, k in zip(stored, settings.experts_of, settings.top_k, strict=True):
        yield total * (experts - k) // experts if experts else 0


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of all tensors as they will be stored."""
    return sum(written_bytes(t) for t in checkpoint.tensors.values())
