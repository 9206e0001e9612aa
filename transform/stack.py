"""Lay the experts of a block back to back, one projection after the other, in one weight file.

Names, values and shapes stay, so the checkpoint loads as before; but all gates of a block are then also one
[experts, width, hidden] array in place, which is what fused operators read.
"""

from dataclasses import replace

from transform.checkpoint import Checkpoint

PARTS = ("gate", "up", "down")


def is_stacked(checkpoint: Checkpoint, stored: str) -> bool:
    """Whether the experts lie so already, as numbers of `stored`, in safetensors' words."""
    for i in range(checkpoint.settings.layers):
        for part in PARTS:
            tensors = [checkpoint.tensor(f"expert.{part}", i, e) for e in range(checkpoint.settings.experts)]
            first = tensors[0]
            places = [(first.file, first.start + e * first.nbytes) for e in range(len(tensors))]
            if first.stored != stored or [(t.file, t.start) for t in tensors] != places:
                return False
    return True


def stack_experts(source: Checkpoint) -> Checkpoint:
    """The checkpoint in one file, its tensors in the source's order but for the experts, which come stack by stack."""
    stacked: dict[str, list[str]] = {}  # the first of a block's experts in the source's order -> all of that block's
    experts: set[str] = set()
    place = {name: at for at, name in enumerate(source.tensors)}
    for i in range(source.settings.layers):
        names = [source.name(f"expert.{part}", i, e) for part in PARTS for e in range(source.settings.experts)]
        stacked[min(names, key=place.__getitem__)] = names
        experts.update(names)
    order: list[str] = []
    for name in source.tensors:
        order += stacked.get(name, [] if name in experts else [name])
    return replace(source, tensors={name: source.tensors[name] for name in order}, joined=True)
