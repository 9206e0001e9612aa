"""Drop whole decoder blocks from a checkpoint.

Keeps the order of the others, renumbers them, rewrites all that the config says of single blocks in the same step;
never touches values. Which blocks matter is `importance/`'s to say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transform.architectures.values import lookup
from transform.architectures.vocabulary import (
    attending,
    check_block_lists,
    keys_of_blocks,
    select_blocks,
    unknown_lists,
)
from transform.checkpoint import Checkpoint
from transform.derived import with_derived_lists
from transform.errors import CheckpointError, KnobError
from transform.passes import Changes, Pass


def pinned_blocks(source: Checkpoint) -> int:
    """How many of the first blocks get something by their place, as Qwen3-VL's get features of pictures, and stay."""
    key = source.architecture.pinned
    receivers = lookup(source.config, key) if key else None
    return len(receivers) if isinstance(receivers, list) else 0


@dataclass(frozen=True)
class DropBlocks(Pass):
    """keep_blocks: the blocks that stay, by their indices in the source, strictly ascending. view: some blocks by
    themselves, to be looked at: what a family's blocks get by their place is then not asked for."""

    keep_blocks: tuple[int, ...]
    view: bool = False
    name = "drop_blocks"

    def requires(self, source: Checkpoint) -> None:
        """Blocks that are there, each once and in order, at least one; lists of the config as long as it has blocks;
        blocks that have their part by their place."""
        keep, layers = self.keep_blocks, source.settings.layers
        if not keep or list(keep) != sorted(set(keep)) or not 0 <= keep[0] <= keep[-1] < layers:
            raise KnobError(
                f"the blocks kept must be distinct, ascending indices from 0 to {layers - 1}, at least one, "
                f"got {list(keep)}."
            )
        family = source.architecture
        text = family.text_of(source.config)
        check_block_lists(text, layers)
        if len(keep) == layers:
            return
        if not family.complete and (unknown := unknown_lists(text, layers, family.singles)):
            raise CheckpointError(
                f"config.json: {unknown[0]} has a value for each of the {layers} blocks or means something else, and "
                f"nothing says which. Keep all blocks, or add the key to {family.model_type}.json (singles) if it "
                "speaks of no block."
            )
        if not self.view:
            self._check_places(source)

    def _check_places(self, source: Checkpoint) -> None:
        keep, family = self.keep_blocks, source.architecture
        first = pinned_blocks(source)
        if lost := sorted(set(range(first)) - set(keep)):
            raise KnobError(
                f"the first {first} blocks of a {family.model_type!r} model must stay, they receive features of "
                f"pictures by their place ({family.pinned}): got block {lost[0]} to drop. Keep blocks 0 to {first - 1}."
            )
        text = family.text_of(with_derived_lists(source).config)
        self._check_caches(text, source.settings.layers)
        for key, wanted in family.last.items():
            kinds = text.get(key)
            if isinstance(kinds, list) and kinds[keep[-1]] != wanted:
                fitting = [i for i, kind in enumerate(kinds) if kind == wanted]
                raise KnobError(
                    f"the last block of a {family.model_type!r} model must be {wanted} ({key}), transformers makes it "
                    f"that: block {keep[-1]} is {kinds[keep[-1]]}. End with one of blocks {fitting}."
                )

    def _check_caches(self, text: Mapping[str, object], layers: int) -> None:
        """Transformers counts a sequence's tokens by the keys of some block."""
        caching = attending(text, layers)
        if caching and not set(caching) & set(self.keep_blocks):
            raise KnobError(
                f"one block that attends must stay, or transformers can't generate with a cache: blocks "
                f"{caching} attend, got {list(self.keep_blocks)} to keep. Keep one of these."
            )

    def run(self, source: Checkpoint) -> Checkpoint:
        """Fewer tensors under new names, a config of fewer blocks; nothing of what lies beyond the decoder's blocks."""
        if len(self.keep_blocks) == source.settings.layers:
            return source
        new_index = {old: new for new, old in enumerate(self.keep_blocks)}
        prefix = source.block_prefix
        tensors = {}
        for name, tensor in source.tensors.items():
            block, part = source.block_of(name)
            if source.is_beyond(name):
                continue
            if block is None:
                tensors[name] = tensor
            elif block in new_index:
                renamed = f"{prefix}{new_index[block]}.{part}"
                tensors[renamed] = tensor._replace(name=renamed)
        return replace(source, config=_selected(with_derived_lists(source), self.keep_blocks), tensors=tensors)

    def changes(self, source: Checkpoint) -> Changes:
        """The number of blocks, what speaks of single ones, and the names of those behind a dropped one."""
        top_k, prefix = source.settings.top_k, source.block_prefix

        def origin(name: str) -> str:
            block, part = source.block_of(name)
            return name if block is None else f"{prefix}{self.keep_blocks[block]}.{part}"

        family = source.architecture
        keys = (family.depth_key, *keys_of_blocks(), *family.derived, *((family.text,) if family.text else ()))
        return Changes(tuple(top_k[i] for i in self.keep_blocks), keys, origin)

    def ensures(self, target: Checkpoint) -> str | None:
        """Nothing more."""


def drop_blocks(source: Checkpoint, keep_blocks: Sequence[int]) -> Checkpoint:
    """The checkpoint with only the blocks `keep_blocks` (indices of the source, strictly ascending)."""
    return DropBlocks(tuple(keep_blocks))(source)


def view_blocks(source: Checkpoint, keep_blocks: Sequence[int]) -> Checkpoint:
    """The same of blocks that are only looked at by themselves: no variant need be able to consist of them."""
    return DropBlocks(tuple(keep_blocks), view=True)(source)


def without_blocks(checkpoint: Checkpoint) -> Checkpoint:
    """What embeds prompts and pictures, norm and head: no plan has this, for no pass leaves nothing to run."""
    prefix = checkpoint.block_prefix
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(prefix)}
    return replace(checkpoint, config=_selected(with_derived_lists(checkpoint), ()), tensors=tensors)


def _selected(checkpoint: Checkpoint, keep_blocks: Sequence[int]) -> Mapping[str, object]:
    family = checkpoint.architecture
    text = select_blocks(family.text_of(checkpoint.config), family.depth_key, keep_blocks, family.routed)
    return family.with_text(checkpoint.config, text)
