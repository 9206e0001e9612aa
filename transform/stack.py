"""Lay the experts of a block back to back, one projection after the other, in one weight file.

Names, values and shapes stay, so the checkpoint loads as before; but all gates and ups of a block are then also the
rows of one array in place, and its downs of another, which is what fused operators read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from transform.checkpoint import Checkpoint
from transform.experts import PARTS, in_slabs
from transform.passes import Changes, Pass


def is_stacked(checkpoint: Checkpoint, stored: str) -> bool:
    """Whether the experts lie so already, as numbers of `stored`, in safetensors' words."""
    blocks = list(_stacks(checkpoint))
    for names in blocks:
        downs = 2 * len(names) // len(PARTS)
        for together in (names[:downs], names[downs:]):  # a gate and an up are of one size
            tensors = [checkpoint.tensors[name] for name in together]
            first = tensors[0]
            places = [(first.file, first.start + at * first.nbytes) for at in range(len(tensors))]
            if first.stored != stored or [(t.file, t.start) for t in tensors] != places:
                return False
    return bool(blocks)


@dataclass(frozen=True)
class StackExperts(Pass):
    """No setting."""

    name = "stack_experts"

    def run(self, source: Checkpoint) -> Checkpoint:
        """All in one file, in the source's order but for the experts, which come stack by stack."""
        stacks: dict[str, list[str]] = {}  # the first of a block's experts in the source's order -> all of that block's
        experts: set[str] = set()
        place = {name: at for at, name in enumerate(source.tensors)}
        for names in _stacks(source):
            stacks[min(names, key=place.__getitem__)] = names
            experts.update(names)
        order: list[str] = []
        for name in source.tensors:
            order += stacks.get(name, [] if name in experts else [name])
        return replace(source, tensors={name: source.tensors[name] for name in order}, joined=True)

    def requires(self, source: Checkpoint) -> None:
        """Nothing: every block has experts."""

    def changes(self, source: Checkpoint) -> Changes:
        """The order alone."""
        return Changes(source.settings.top_k, order=True)

    def ensures(self, target: Checkpoint) -> str | None:
        """One file, in which each block's experts follow each other."""
        order = list(target.tensors)
        place = {name: at for at, name in enumerate(order)}
        starts = [(place[names[0]], names) for names in _stacks(target)]
        apart = [block for block, (at, names) in enumerate(starts) if order[at : at + len(names)] != names]
        if apart or not target.joined:
            return f"the experts of block {apart[0] if apart else 0} don't follow each other in one file"
        return None


def _stacks(checkpoint: Checkpoint) -> Iterator[list[str]]:
    """The names of each block's experts, all gates, then all ups, then all downs. In slabs they lie so already."""
    for i, count in enumerate(checkpoint.settings.experts_of):
        if count and not in_slabs(checkpoint, i):
            yield [checkpoint.name(f"expert.{part}", i, e) for part in PARTS for e in range(count)]


def stack_experts(source: Checkpoint) -> Checkpoint:
    """The checkpoint in one file, its tensors in the source's order but for the experts, which come stack by stack."""
    return StackExperts()(source)
