"""Pictures: encoded, of noise, and the reference's synthetic image."""

import io
from typing import Any

import numpy as np
from PIL import Image

from transform.arrays import Array


def encoded(picture: Image.Image | Array, kind: str = "PNG", **options: Any) -> bytes:
    """A picture, or uint8 pixels [h, w, 3], in a file format of pillow."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise_png(seed: int) -> bytes:
    """Six by four random pixels."""
    return encoded(np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8))


def synthetic_image(width: int, height: int, seed: int) -> Array:
    """The exact synthetic image of the reference's records, uint8 [height, width, 3]."""
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    red = np.broadcast_to(255 * x // max(width - 1, 1), (height, width))
    green = np.broadcast_to(255 * y // max(height - 1, 1), (height, width))
    blue = 160 * ((x // 9 + y // 7) % 2) + (3 * x + 5 * y + seed) % 96
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)
