"""Drop whole decoder blocks from a checkpoint.

Keeps the order of the others, renumbers them, slices every per-block list of the config in the same step; never touches
values. Which blocks matter is `importance/`'s to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transform.architectures.per_block import PER_BLOCK, check_block_lists, select_blocks
from transform.checkpoint import Checkpoint
from transform.errors import KnobError
from transform.passes import Changes, Pass


@dataclass(frozen=True)
class DropBlocks(Pass):
    """keep_blocks: the blocks that stay, by their indices in the source, strictly ascending."""

    keep_blocks: tuple[int, ...]
    name = "drop_blocks"

    def requires(self, source: Checkpoint) -> None:
        """Blocks that are there, each once and in order, at least one; lists of the config as long as it has blocks."""
        keep, layers = self.keep_blocks, source.settings.layers
        if not keep or list(keep) != sorted(set(keep)) or not 0 <= keep[0] <= keep[-1] < layers:
            raise KnobError(
                f"the blocks kept must be distinct, ascending indices from 0 to {layers - 1}, at least one, "
                f"got {list(keep)}."
            )
        check_block_lists(source.config, layers)

    def run(self, source: Checkpoint) -> Checkpoint:
        """Fewer tensors under new names, a config of fewer blocks."""
        new_index = {old: new for new, old in enumerate(self.keep_blocks)}
        prefix = _prefix(source)
        tensors = {}
        for name, tensor in source.tensors.items():
            block, part = _numbered(name, prefix)
            if block is None:
                tensors[name] = tensor
            elif block in new_index:
                renamed = f"{prefix}{new_index[block]}.{part}"
                tensors[renamed] = tensor._replace(name=renamed)
        config = select_blocks(source.config, source.architecture.depth_key, self.keep_blocks)
        return replace(source, config=config, tensors=tensors)

    def changes(self, source: Checkpoint) -> Changes:
        """The number of blocks, what lists them, and the names of those behind a dropped one."""
        top_k, prefix = source.settings.top_k, _prefix(source)

        def origin(name: str) -> str:
            block, part = _numbered(name, prefix)
            return name if block is None else f"{prefix}{self.keep_blocks[block]}.{part}"

        keys = (source.architecture.depth_key, *PER_BLOCK)
        return Changes(tuple(top_k[i] for i in self.keep_blocks), keys, origin)

    def ensures(self, target: Checkpoint) -> str | None:
        """Nothing more."""


def drop_blocks(source: Checkpoint, keep_blocks: Sequence[int]) -> Checkpoint:
    """The checkpoint with only the blocks `keep_blocks` (indices of the source, strictly ascending)."""
    return DropBlocks(tuple(keep_blocks))(source)


def without_blocks(checkpoint: Checkpoint) -> Checkpoint:
    """What embeds prompts and pictures, norm and head: no plan has this, for no pass leaves nothing to run."""
    config = select_blocks(checkpoint.config, checkpoint.architecture.depth_key, ())
    prefix = _prefix(checkpoint)
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(prefix)}
    return replace(checkpoint, config=config, tensors=tensors)


def _prefix(checkpoint: Checkpoint) -> str:
    """What the names of tensors in blocks begin with, up to the block's number."""
    return checkpoint.architecture.block.partition("{i}")[0]


def _numbered(name: str, prefix: str) -> tuple[int | None, str]:
    """(block, the name behind its number); (None, name) for a tensor in no block."""
    number, _, part = name.removeprefix(prefix).partition(".")
    inside = name.startswith(prefix) and part and number.isascii() and number.isdigit()
    return (int(number), part) if inside else (None, name)
