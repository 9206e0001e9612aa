"""The picture of the gate's probe and of `knobcast bench`: drawn, always the same. No torch."""

import numpy as np

from transform.arrays import Array


def drawn_picture(width: int = 150, height: int = 110) -> Array:
    """A small drawn picture, uint8 [h, w, 3]: gradients, a disc and stripes."""
    y, x = np.mgrid[0:height, 0:width]
    disc = (x - width // 3) ** 2 + (y - height // 2) ** 2 < (height // 4) ** 2
    channels = (
        255 * x // (width - 1),
        255 * y // (height - 1),
        np.where(disc, 230, 40 + 150 * ((x // 9 + y // 7) % 2)),
    )
    return np.stack(channels, -1).astype(np.uint8)
