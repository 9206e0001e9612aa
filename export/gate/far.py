"""Two tokens far behind the start: what lies beyond windows that are longer than the gate's prompts.

A prompt of thousands would take longer than all else, and nothing asks for one: the cache may hold anything, as long as
both sides are given the same. So random keys and values stand for what would have been there, in two rows, one of them
padded on the left. The values about the edge of each window are large: one of them more or less, and it shows.

s = 2 new tokens, p cached ones, t = p + s, G key/value heads, h head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transform.architectures import Settings
from transform.arrays import Array

NEW = 2
BEYOND = 8  # tokens that the longest window no longer reaches
PADDING = 5
ABOUT = 2  # values on each side of an edge that are large
KEYS = 0.05  # their size: small, so that all are attended to alike, whatever a model's queries are
MOST_BYTES = 1 << 30  # of the cache on one side; PyTorch and the graph have one each


@dataclass(frozen=True)
class FarProbe:
    """`ids` [2, s], `mask` [2, t], `past`: keys and values [2, G, p, h] of each block, float32."""

    ids: Array
    mask: Array
    past: tuple[tuple[Array, Array], ...]


def far_windows(settings: Settings, most: int) -> tuple[int, ...]:
    """Windows above `most` that a sequence of the model's positions outgrows, ascending."""
    found = {window for window in settings.windows if window is not None and window > most}
    return tuple(sorted(window for window in found if window + BEYOND + PADDING <= settings.max_positions))


def fits_in_memory(settings: Settings, layers: int, windows: Sequence[int]) -> bool:
    """Whether the cache of so long a sequence, of `layers` blocks, stays within MOST_BYTES."""
    rows, parts = 2, 2
    values = rows * parts * layers * settings.kv_heads * settings.head_dim * (max(windows) + BEYOND + PADDING)
    return values * np.dtype(np.float32).itemsize <= MOST_BYTES


def far_probe(settings: Settings, windows: Sequence[int], seed: int) -> FarProbe:
    """The probe of these windows, the same for a seed."""
    generator = np.random.Generator(np.random.PCG64(seed))
    total = max(windows) + BEYOND + PADDING
    held = total - NEW
    ids = generator.integers(0, settings.vocab - 1, (2, NEW))
    mask = np.ones((2, total), np.int64)
    mask[0, :PADDING] = 0
    shape = (2, settings.kv_heads, held, settings.head_dim)
    past = []
    for _ in range(settings.layers):
        keys, values = (generator.standard_normal(shape, np.float32) for _ in range(2))
        keys *= KEYS
        for window in windows:
            edge = total - window
            # as much as all that is attended to weighs together
            values[:, :, max(0, edge - ABOUT) : edge + ABOUT] *= window / (2 * ABOUT)
        past.append((keys, values))
    return FarProbe(ids, mask, tuple(past))
