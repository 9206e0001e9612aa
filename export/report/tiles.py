"""Where a picture lies on the canvas of its tiling, and where the tiles are: the geometry of preprocessing, no pixels.

Lengths are pixels of the canvas, boxes (left, top, width, height).
"""

from dataclasses import dataclass

import numpy as np

from transform.molmoe.pictures import ImageError
from transform.molmoe.preprocessing import choose_tiling
from transform.molmoe.tiling import (
    CROP,
    TOKENS_PER_CROP,
    WINDOW,
    Tiling,
    image_tokens,
    patch_tokens,
    tiling_to_resolution,
)

Box = tuple[int, int, int, int]
STOCK_CROPS = 12


@dataclass(frozen=True)
class Layout:
    """A picture under a budget. `picture`: where it lies, beyond the canvas where it is cut (`fill`); `nominal`: tokens
    as budgets count them; `features`: those that the sequence holds; `positions`: with starts, ends and columns."""

    tiling: Tiling
    canvas: tuple[int, int]  # width, height
    picture: Box
    tiles: tuple[Box, ...]

    @property
    def nominal(self) -> int:
        """Tokens as a budget counts them: what the encoder computes."""
        return (len(self.tiles) + 1) * TOKENS_PER_CROP

    @property
    def features(self) -> int:
        """Image features in the sequence, overlaps once."""
        return patch_tokens(*self.tiling)

    @property
    def positions(self) -> int:
        """Positions of the sequence that the image takes, without BOS."""
        return image_tokens(*self.tiling)

    @property
    def padding(self) -> float:
        """Share of the canvas that no pixel of the picture covers, 0 to 1."""
        area = self.canvas[0] * self.canvas[1]
        return 1 - self._shown / area

    @property
    def cut(self) -> float:
        """Share of the picture that lies beyond the canvas, 0 to 1."""
        return 1 - self._shown / (self.picture[2] * self.picture[3])

    @property
    def overlap(self) -> float:
        """Share of the canvas that more than one tile sees, 0 to 1."""
        rows, columns = self.tiling
        once = (WINDOW * columns + CROP - WINDOW - (columns - 1) * (CROP - WINDOW)) * (
            WINDOW * rows + CROP - WINDOW - (rows - 1) * (CROP - WINDOW)
        )
        return 1 - once / (self.canvas[0] * self.canvas[1])

    @property
    def _shown(self) -> int:
        left, top, width, height = self.picture
        across = min(left + width, self.canvas[0]) - max(left, 0)
        down = min(top + height, self.canvas[1]) - max(top, 0)
        return across * down


def layout(width: int, height: int, tokens: int | str | None, *, resize: str = "pad", rule: str = "canvas") -> Layout:
    """How `preprocess` cuts a picture of this size; raises BudgetError or ImageError, as that does."""
    tiling = choose_tiling(height, width, tokens, STOCK_CROPS, rule)
    down, across = tiling_to_resolution(tiling)
    return Layout(
        tiling,
        (across, down),
        placed(width, height, (across, down), resize),
        tuple((WINDOW * j, WINDOW * i, CROP, CROP) for i in range(tiling[0]) for j in range(tiling[1])),
    )


def placed(width: int, height: int, canvas: tuple[int, int], resize: str) -> Box:
    """The resized picture's box, in the middle of the canvas: inside it (`pad`) or around it (`fill`).

    float32 as in preprocessing: sizes may differ by a pixel else. Raises ImageError where nothing of a side is left.
    """
    sides = np.array((width, height), np.float32)
    scales = np.array(canvas, np.float32) / sides
    fitted = np.ceil(sides * scales.max()) if resize == "fill" else sides * scales.min()
    across, down = int(fitted[0]), int(fitted[1])
    if min(across, down) < 1:
        raise ImageError(
            f"Each side must keep at least 1 pixel on the canvas: {width}×{height} fitted into {canvas[0]}×{canvas[1]} "
            f"becomes {across}×{down}. Cut the image, or use resize='fill'."
        )
    if resize == "fill":
        return -((across - canvas[0]) // 2), -((down - canvas[1]) // 2), across, down
    return (canvas[0] - across) // 2, (canvas[1] - down) // 2, across, down
