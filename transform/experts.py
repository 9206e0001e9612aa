"""How the experts of a block lie: a matrix each, or in slabs of all experts; and each one's matrices as views.

Slabs are [E, 2I, d] and [E, d, I], gate above up, or turned, [E, d, 2I] and [E, I, d], which shapes decide. A view is a
range of bytes, so nothing that takes matrices need know where they come from.

E experts, d width, I inner width.
"""

import re
from typing import NamedTuple

from transform.checkpoint import Checkpoint, Tensor
from transform.errors import CheckpointError

PARTS = ("gate", "up", "down")
OF_EXPERTS = re.compile(r"(^|\.)experts\.|(^|\.)(block_sparse_moe|mlp)\.(input|output)_linear\.")  # in names


class Expert(NamedTuple):
    """One expert's matrices [out, in], gate and up apart."""

    gate: Tensor
    up: Tensor
    down: Tensor


class TurnedExpert(NamedTuple):
    """One expert's matrices [in, out], gate and up in one."""

    gate_up: Tensor
    down: Tensor


def in_slabs(checkpoint: Checkpoint, i: int) -> bool:
    """Whether block i has all of its experts in one array per product."""
    return checkpoint.find("expert.gate_up", i) is not None


def is_turned(checkpoint: Checkpoint, i: int) -> bool:
    """Whether block i's slabs are [in, out]; raises CheckpointError where they are neither."""
    if not in_slabs(checkpoint, i):
        return False
    gate_up, down = checkpoint.tensor("expert.gate_up", i), checkpoint.tensor("expert.down_slab", i)
    width = checkpoint.settings.hidden
    if len(gate_up.shape) == len(down.shape) == 3 and gate_up.shape[0] == down.shape[0]:
        _, a, b = gate_up.shape
        if (b, down.shape[1:]) == (width, (width, a // 2)) and a % 2 == 0:
            return False
        if (a, down.shape[1:]) == (width, (b // 2, width)) and b % 2 == 0:
            return True
    raise CheckpointError(
        f"{gate_up.name!r} and {down.name!r} must be [E, 2I, {width}] and [E, {width}, I], or [E, {width}, 2I] and "
        f"[E, I, {width}], they are {list(gate_up.shape)} and {list(down.shape)}. Config and weights must be of one "
        "checkpoint."
    )


def inner_width(checkpoint: Checkpoint, i: int) -> int:
    """I of block i."""
    if not in_slabs(checkpoint, i):
        return checkpoint.tensor("expert.gate", i).shape[0]
    return checkpoint.tensor("expert.gate_up", i).shape[2 if is_turned(checkpoint, i) else 1] // 2


def experts_of(checkpoint: Checkpoint, i: int) -> list[Expert]:
    """Block i's experts in order; its slabs, if it has some, aren't turned."""
    every = range(checkpoint.settings.experts_of[i])
    if not in_slabs(checkpoint, i):
        return [Expert(*(checkpoint.tensor(f"expert.{part}", i, e) for part in PARTS)) for e in every]
    gate_up, down = checkpoint.tensor("expert.gate_up", i), checkpoint.tensor("expert.down_slab", i)
    inner = gate_up.shape[1] // 2
    gates, ups = slice(0, inner), slice(inner, 2 * inner)
    return [Expert(gate_up.view(e, gates), gate_up.view(e, ups), down.view(e)) for e in every]


def turned_experts_of(checkpoint: Checkpoint, i: int) -> list[TurnedExpert]:
    """Block i's experts in order, whose slabs are turned."""
    gate_up, down = checkpoint.tensor("expert.gate_up", i), checkpoint.tensor("expert.down_slab", i)
    return [TurnedExpert(gate_up.view(e), down.view(e)) for e in range(checkpoint.settings.experts_of[i])]


def first_weight(checkpoint: Checkpoint, i: int) -> Tensor:
    """A tensor of block i's experts: what it is stored as, all of them are."""
    return checkpoint.tensor("expert.gate_up" if in_slabs(checkpoint, i) else "expert.gate", i)
