"""Drop whole decoder blocks from a checkpoint.

Requires indices of existing blocks. Keeps their order, renumbers the survivors, slices every per-layer list of
the config in the same step; never touches values. Which blocks matter is `importance/`'s to say.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from transform.architectures.per_block import select_blocks
from transform.checkpoint import Checkpoint, Tensor
from transform.errors import KnobError


def drop_blocks(source: Checkpoint, keep: Sequence[int]) -> Checkpoint:
    """The checkpoint with only the blocks `keep` (indices of the source, strictly ascending)."""
    layers = source.settings.layers
    if not keep or list(keep) != sorted(set(keep)) or not 0 <= keep[0] <= keep[-1] < layers:
        raise KnobError(
            f"the blocks kept must be distinct, ascending indices from 0 to {layers - 1}, at least one, "
            f"got {list(keep)}."
        )
    architecture = source.architecture
    prefix, _, _ = architecture.block.partition("{i}")
    numbered = re.compile(re.escape(prefix) + r"(\d+)\.")
    new_index = {old: new for new, old in enumerate(keep)}
    tensors: dict[str, Tensor] = {}
    for name, tensor in source.tensors.items():
        match = numbered.match(name)
        if match is None:
            tensors[name] = tensor
        elif int(match[1]) in new_index:
            renamed = f"{prefix}{new_index[int(match[1])]}.{name[match.end() :]}"
            tensors[renamed] = tensor._replace(name=renamed)

    return replace(source, config=select_blocks(source.config, architecture.depth_key, keep), tensors=tensors)
