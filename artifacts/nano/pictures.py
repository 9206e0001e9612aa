"""Drawn pictures with questions and answers: the synthetic samples that the nano model is scored on.

Integer arithmetic on numpy arrays and a counter-based choice, so that every machine draws the same pixels.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

COLOURS = {
    "red": (220, 40, 30), "green": (30, 160, 60), "blue": (40, 70, 210), "yellow": (240, 210, 40),
    "black": (15, 15, 15), "orange": (240, 140, 30), "purple": (130, 50, 160), "grey": (128, 128, 128),
}  # fmt: skip
SHAPES = ("square", "circle", "triangle", "cross")
COUNTS = ("no", "one", "two", "three")
SIZES = ((280, 300), (336, 336), (200, 240), (300, 520))  # height, width: three of one tile, one of two


class Sample(NamedTuple):
    """A picture, what is asked about it, and the answer."""

    id: str
    image: NDArray[np.uint8]  # [h, w, 3]
    prompt: str
    answer: str


def samples(count: int) -> Iterator[Sample]:
    """The first `count` samples."""
    for n in range(count):
        dice = list(hashlib.sha256(f"nano sample {n}".encode()).digest())
        height, width = SIZES[n % len(SIZES)]
        shape, colour = SHAPES[dice[0] % len(SHAPES)], list(COLOURS)[dice[1] % len(COLOURS)]
        number = 1 + dice[2] % 3
        image = np.full((height, width, 3), 255 - dice[3] % 64, np.uint8)
        side = min(height, width // 3) // 2 + dice[4] % 16
        for i in range(number):
            x = (2 * i + 1) * width // (2 * number)
            y = height // 2 + dice[5 + i] % (height // 4) - height // 8
            image[_inside(shape, height, width, y, x, side * 2 // (number + 1))] = COLOURS[colour]
        asked = (
            (f"What colour is the {shape}?", f"The {shape} is {colour}."),
            (f"How many {shape}s are there?", f"There are {COUNTS[number]} {shape}s."),
            (f"Which shape is {colour}?", f"The {shape}."),
            (f"Is there a {colour} {shape} in the picture?", f"Yes. There is a {colour} {shape}."),
        )
        prompt, answer = asked[(n // len(SIZES)) % len(asked)]
        yield Sample(f"nano-{n:04d}", image, prompt, answer)


def digest(items: list[Sample]) -> str:
    """SHA-256 over ids, texts and pixels."""
    found = hashlib.sha256()
    for item in items:
        pixels = hashlib.sha256(item.image.tobytes()).hexdigest()
        found.update(f"{item.id}\n{item.prompt}\n{item.answer}\n{item.image.shape}\n{pixels}\n".encode())
    return found.hexdigest()


def _inside(shape: str, height: int, width: int, y: int, x: int, side: int) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:height, :width]
    down, right, half = rows - y, columns - x, side // 2
    box = (abs(down) <= half) & (abs(right) <= half)
    inside = {
        "square": box,
        "circle": down * down + right * right <= half * half,
        "triangle": box & (2 * abs(right) <= down + half),
        "cross": box & ((4 * abs(down) <= half) | (4 * abs(right) <= half)),
    }
    return np.asarray(inside[shape])
