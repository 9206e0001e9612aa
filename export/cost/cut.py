"""Cutting a picture into crops -> its part: what `export/graph/preprocess.py` would emit. No work of the model's.

Two views, the whole picture and the tiled one; each is resized along both axes by strips of dense products.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from export.cost.part import Part
from transform.molmoe.tiling import CROP, PATCH, PATCHES, Tiling, tiling_to_resolution

NAME = "cutting the picture"
STRIP = 16  # outputs of a product
STRIP_OPERATORS = 30
OPERATORS = 290
PIXEL_PASSES = 10  # reads and writes of float32 pixels on the canvas
FLOAT = 4


class _Axis(NamedTuple):
    """One side of a picture, before and after."""

    size: int
    resized: float

    @property
    def band(self) -> float:
        """Pixels that a strip needs."""
        scale = self.size / self.resized
        return min(STRIP * scale + 2 * max(scale, 1.0), self.size)

    @property
    def strips(self) -> float:
        """How many."""
        return self.resized / STRIP


@dataclass(frozen=True)
class Cut:
    """A picture of (width, height) pixels, its tiling, and how it is fitted."""

    image: tuple[int, int]
    tiling: Tiling
    resize: str

    @property
    def part(self) -> Part:
        """Both views, and the crops that the tiled one is gathered into."""
        views = [self._view((CROP, CROP)), self._view(tiling_to_resolution(self.tiling))]
        crops = 1 + math.prod(self.tiling)
        gathered = 3 * crops * PATCHES**2 * 3 * PATCH**2 * FLOAT
        return Part(
            NAME,
            sum(view.flops for view in views),
            0,
            sum(view.activations for view in views) + gathered,
            OPERATORS + sum(view.operators for view in views),
        )

    def _view(self, canvas: tuple[int, int]) -> Part:
        width, height = self.image
        scales = (canvas[0] / height, canvas[1] / width)
        scale = max(scales) if self.resize == "fill" else min(scales)
        down, across = _Axis(height, max(height * scale, 1.0)), _Axis(width, max(width * scale, 1.0))
        first = 2 * down.resized * down.band * width * 3
        second = 2 * across.resized * across.band * down.resized * 3
        moved = width * height * 3 * (1 + 2 * FLOAT) + 2 * width * down.resized * 3 * FLOAT
        moved += PIXEL_PASSES * math.prod(canvas) * 3 * FLOAT
        return Part(NAME, round(first + second), 0, moved, STRIP_OPERATORS * (down.strips + across.strips))
