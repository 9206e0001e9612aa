"""A config -> the numbers of its vision tower, checked."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from transform.architectures import lookup, shown
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.errors import CheckpointError


@dataclass(frozen=True)
class Tower:
    """The vision numbers of a config."""

    heads: int
    eps: float
    taps: tuple[int, ...]  # blocks whose outputs are the features, in this order
    grid: int  # patches per side
    patch_values: int
    pool: tuple[int, int]  # patches per window, down and across

    @property
    def windows(self) -> int:
        """Windows per crop."""
        return (self.grid // self.pool[0]) * (self.grid // self.pool[1])

    def window_patches(self) -> Array:
        """[windows, patches per window]: which patches of a crop a window holds; both row-major."""
        places = np.arange(self.grid**2, dtype=np.int64).reshape(self.grid, self.grid)
        down, across = self.pool
        blocks = places.reshape(self.grid // down, down, self.grid // across, across).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(blocks.reshape(self.windows, down * across))


def read_tower(checkpoint: Checkpoint) -> Tower:
    """The vision settings of a checkpoint's config, under the family's names."""
    config, images = checkpoint.config, checkpoint.architecture.images
    assert images is not None
    keys = images.tower
    blocks = _number(config, keys.blocks)
    layers = lookup(config, keys.taps)
    known = range(-blocks, blocks)
    if not isinstance(layers, list) or not layers or any(type(n) is not int or n not in known for n in layers):
        raise CheckpointError(
            f"config.json: {keys.taps} must list blocks of the {blocks} there are, got {shown(layers)}. "
            "Restore the original config.json."
        )
    eps = lookup(config, keys.eps, 1e-5)
    if type(eps) not in (int, float) or not 0 < eps <= 1:
        raise CheckpointError(
            f"config.json: {keys.eps} must be a number above 0, at most 1, got {shown(eps)}. "
            "Restore the original config.json."
        )
    patch = _number(config, keys.patch)
    down, across = (int(lookup(config, key, 2)) for key in keys.pool)
    return Tower(
        heads=_number(config, keys.heads),
        eps=float(eps),
        taps=tuple(layer % blocks for layer in layers),
        grid=int(lookup(config, keys.side, [336, 336])[0]) // patch,
        patch_values=3 * patch * patch,
        pool=(down, across),
    )


def _number(config: Mapping[str, object], key: str) -> int:
    value = lookup(config, key)
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"config.json: {key} must be a whole number from 1, got {shown(value)}. Restore the original config.json."
        )
    return value
