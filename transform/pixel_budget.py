"""Token budgets of processors that resize a picture by its area: bounds in pixels, and how many tokens follow.

A token is a square of pixels. Such a processor keeps a picture's aspect, makes both sides multiples of that square's
and holds the area between two bounds, the `size` of its file: above the upper one the sides are rounded down, below the
lower one up (`smart_resize` of transformers' Qwen2-VL, GLM-4V and ERNIE-4.5-VL processors). A budget of N tokens is
an upper bound of N squares and a lower one of three quarters of it: with a narrower gap, rounding up passes N.
"""

import math
from dataclasses import dataclass

from transform.architectures.pictures import Fit
from transform.errors import KnobError

MOST_ASPECT = 200  # transformers refuses narrower pictures


@dataclass(frozen=True)
class PixelBudget:
    """`tokens`: the most of a picture whose aspect isn't extreme; `side`: pixels of a token's; `fit`: how the processor
    counts a picture's area; `frames`: how often, where it counts it as a clip's."""

    tokens: int
    side: int
    fit: Fit = Fit.AREA
    frames: int = 1

    @property
    def longest_edge(self) -> int:
        """The upper bound, an area in pixels in spite of its name."""
        return self.tokens * self.side**2 * self.frames

    @property
    def shortest_edge(self) -> int:
        """The lower bound."""
        return self.longest_edge * 3 // 4

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a picture of these pixels, in the processor's own arithmetic.

        Raises KnobError for a picture narrower than MOST_ASPECT, which the processor refuses.
        """
        side, frames = self.side, self.frames
        if self.fit is Fit.CLIP and min(height, width) < side:
            scale = max(side / height, side / width)
            height, width = int(height * scale), int(width * scale)
        if max(height, width) / min(height, width) > MOST_ASPECT:
            raise KnobError(
                f"a picture's longer side must be at most {MOST_ASPECT} times the other, got {width}×{height}. Crop it."
            )
        rows, columns = round(height / side), round(width / side)
        if frames * rows * columns * side**2 > self.longest_edge:
            shrink = math.sqrt((frames * height * width) / self.longest_edge)
            return max(1, math.floor(height / shrink / side)), max(1, math.floor(width / shrink / side))
        if frames * rows * columns * side**2 < self.shortest_edge:
            grow = math.sqrt(self.shortest_edge / (frames * height * width))
            return math.ceil(height * grow / side), math.ceil(width * grow / side)
        return rows, columns

    def count(self, height: int, width: int) -> int:
        """Tokens of a picture of these pixels."""
        rows, columns = self.grid(height, width)
        return rows * columns
