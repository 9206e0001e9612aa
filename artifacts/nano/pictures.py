"""Drawn pictures and questions about them: what the nano model learns and is measured on.

A scene is a few coloured shapes that don't touch, each with a small number on it; pixels, questions and answers
follow from it. Integer arithmetic and Python's own generator, so that every machine draws the same.

Kinds of questions, with the share that guessing the commonest answer would get (`CHANCE`):
colour, shape, count (1 to 5), position (a 3 by 3 grid), relation (left, right, above, below), digit (a number on
a picture that fits one tile) and detail (a number on a picture that needs several: unreadable when it is shrunk to
one).
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

COLOURS = {
    "red": (220, 40, 30), "green": (30, 160, 60), "blue": (40, 70, 210), "yellow": (240, 210, 40),
    "black": (15, 15, 15), "orange": (240, 130, 20), "purple": (130, 50, 160), "grey": (128, 128, 128),
}  # fmt: skip
DARK = ("red", "green", "blue", "black", "purple", "grey")  # these carry a white number, the others a black one
SHAPES = ("square", "circle", "triangle", "cross", "ring")
DIGITS = {  # 5 by 7
    1: "00100 01100 00100 00100 00100 00100 01110", 2: "01110 10001 00001 00110 01000 10000 11111",
    3: "01110 10001 00001 00110 00001 10001 01110", 4: "00010 00110 01010 10010 11111 00010 00010",
    5: "11111 10000 11110 00001 00001 10001 01110", 6: "01110 10000 10000 11110 10001 10001 01110",
    7: "11111 00001 00010 00100 01000 01000 01000",
}  # fmt: skip
DOT = 2  # pixels a side of one dot of a digit: digits are 10 × 14 pixels on every picture
WORDS = ("no", "one", "two", "three", "four", "five", "six")
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
PLURAL = {"cross": "crosses"}
SYNONYMS = {"grey": ["gray"], "middle": ["centre", "center"]}

# (height, width): pictures of one tile, of two, and of six under the released tiling
SMALL = ((336, 336), (280, 336), (336, 260), (300, 300))
MEDIUM = ((336, 560), (560, 336), (320, 544))
LARGE = ((560, 784), (784, 560), (560, 728), (728, 540))
SIZES = (*((size, 45 / len(SMALL)) for size in SMALL), *((size, 20 / len(MEDIUM)) for size in MEDIUM),
         *((size, 35 / len(LARGE)) for size in LARGE))  # fmt: skip
KINDS = ("colour", "shape", "count", "position", "relation", "digit", "detail")
CHANCE = {
    "colour": 0.13,
    "shape": 0.21,
    "count": 0.47,
    "position": 0.12,
    "relation": 0.27,
    "digit": 0.15,
    "detail": 0.16,
}


class Thing(NamedTuple):
    """One drawn shape: centre and radius in pixels of the picture."""

    shape: str
    colour: str
    digit: int
    y: int
    x: int
    radius: int


class Question(NamedTuple):
    """What is asked, and the answers that count; the first one is taught."""

    kind: str
    prompt: str
    answers: tuple[str, ...]


class Scene(NamedTuple):
    """What a picture shows."""

    height: int
    width: int
    paper: tuple[int, int, int]
    things: tuple[Thing, ...]

    def draw(self) -> NDArray[np.uint8]:
        """Pixels [height, width, 3]."""
        image = np.empty((self.height, self.width, 3), np.uint8)
        image[:] = self.paper
        for thing in self.things:
            r = thing.radius
            box = image[thing.y - r : thing.y + r + 1, thing.x - r : thing.x + r + 1]
            box[_inside(thing.shape, r)] = COLOURS[thing.colour]
            ink = (255, 255, 255) if thing.colour in DARK and thing.shape != "ring" else (0, 0, 0)
            glyph = np.array([[c == "1" for c in row] for row in DIGITS[thing.digit].split()])
            glyph = glyph.repeat(DOT, 0).repeat(DOT, 1)
            h, w = glyph.shape
            top, left = thing.y - h // 2, thing.x - w // 2
            image[top : top + h, left : left + w][glyph] = ink
        return image

    def to_json(self) -> dict[str, Any]:
        """Height, width and things, for the data files."""
        return {"height": self.height, "width": self.width, "things": [list(t) for t in self.things]}


def scene(split: str, number: int) -> Scene:
    """The scene of one picture; splits never share one (their seeds differ, and a test compares pixels)."""
    dice = Random(f"nano {split} {number}")
    height, width = dice.choices([s for s, _ in SIZES], [w for _, w in SIZES])[0]
    paper = dice.randrange(205, 250)
    tint = (paper, paper, paper) if dice.random() < 0.5 else tuple(paper + dice.randrange(6) for _ in range(3))
    names = _names(dice, dice.randrange(2, 7))
    side = min(height, width)
    unit = round((height * width) ** 0.5)
    things: list[Thing] = []
    for shape, colour in names:
        radius = min(dice.randrange(unit * 8 // 100, unit * 13 // 100), side // 5)
        for _ in range(60):
            y, x = dice.randrange(radius + 2, height - radius - 2), dice.randrange(radius + 2, width - radius - 2)
            if all(max(abs(y - t.y), abs(x - t.x)) > radius + t.radius + 4 for t in things):
                things.append(Thing(shape, colour, dice.choice(tuple(DIGITS)), y, x, radius))
                break
    return Scene(height, width, (tint[0], tint[1], tint[2]), tuple(things))


def _names(dice: Random, count: int) -> list[tuple[str, str]]:
    """Shapes and colours: often several of one shape or colour, so that there is something to count."""
    shapes = [dice.choice(SHAPES) for _ in range(count)]
    colours = [dice.choice(tuple(COLOURS)) for _ in range(count)]
    group = dice.randrange(1, count + 1)
    if dice.random() < 0.5:
        shapes[:group] = [shapes[0]] * group
    else:
        colours[:group] = [colours[0]] * group
    names = list(zip(shapes, colours, strict=True))
    dice.shuffle(names)
    return names


def questions(shown: Scene, split: str, number: int) -> list[Question]:
    """All that is asked about a picture, at most two of a kind, in a drawn order."""
    dice = Random(f"nano questions {split} {number}")
    shapes, colours = Counter(t.shape for t in shown.things), Counter(t.colour for t in shown.things)
    single = [t for t in shown.things if shapes[t.shape] == 1 or colours[t.colour] == 1]
    found: dict[str, list[Question]] = {kind: [] for kind in KINDS}

    def name(thing: Thing) -> str:
        ways = [f"the {thing.shape}"] * (shapes[thing.shape] == 1)
        ways += [f"the {thing.colour} shape"] * (colours[thing.colour] == 1)
        return dice.choice(ways)

    for t in shown.things:
        if shapes[t.shape] == 1:
            found["colour"].append(_ask("colour", f"What colour is the {t.shape}?", t.colour))
        if colours[t.colour] == 1:
            found["shape"].append(_ask("shape", f"Which shape is {t.colour}?", t.shape))
    counted = [(f"{c} shapes", n) for c, n in sorted(colours.items())] + [
        (PLURAL.get(s, f"{s}s"), n) for s, n in sorted(shapes.items())
    ]
    by_number: dict[int, list[str]] = {}
    for what, n in counted:
        by_number.setdefault(n, []).append(what)
    order = dice.sample(sorted(by_number), len(by_number))
    for n in sorted(order, key=lambda n: n == 1)[: 1 + (dice.random() < 0.3)]:  # "one" only now and then
        if n < len(WORDS) - 1:
            prompt = f"How many {dice.choice(by_number[n])} are there?"
            found["count"].append(Question("count", prompt, (str(n), WORDS[n])))
    for t in single:
        place = _place(shown, t)
        if place:
            found["position"].append(_ask("position", f"Where is {name(t)}?", place))
        kind = "digit" if (shown.height, shown.width) in SMALL else "detail"
        if (shown.height, shown.width) not in MEDIUM:
            found[kind].append(_ask(kind, f"What number is on {name(t)}?", str(t.digit)))
        for other in single:
            side = _side(other, t)
            if t is not other and side:
                found["relation"].append(_ask("relation", f"From {name(other)}, where is {name(t)}?", side))
    chosen = [q for kind in KINDS for q in dice.sample(found[kind], min(2, len(found[kind])))]
    return dice.sample(chosen, len(chosen))


def pictures(split: str, count: int) -> Iterator[tuple[str, Scene, list[Question]]]:
    """(name, scene, questions) of the first `count` pictures of a split that have a question."""
    number = given = 0
    while given < count:
        shown = scene(split, number)
        asked = questions(shown, split, number)
        if asked:
            yield f"{split}-{given:05d}", shown, asked
            given += 1
        number += 1


def digest(image: NDArray[np.uint8]) -> str:
    """SHA-256 of the pixels."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def _ask(kind: str, prompt: str, answer: str) -> Question:
    return Question(kind, prompt, (answer, *SYNONYMS.get(answer, ())))


def _place(shown: Scene, t: Thing) -> str:
    """Cell of a 3 by 3 grid, or "" if the centre is too near to a border between cells to say."""
    parts = []
    for centre, length, words in ((t.y, shown.height, ROWS), (t.x, shown.width, COLUMNS)):
        third = 3 * centre * 100 // length  # in hundredths of a third
        if any(abs(third - border) < 15 for border in (100, 200)):
            return ""
        parts.append(words[third // 100])
    return " ".join(filter(None, parts)) or "middle"


def _side(of: Thing, t: Thing) -> str:
    """Where `t` lies from `of`, or "" unless one direction clearly wins."""
    down, right = t.y - of.y, t.x - of.x
    if abs(right) > 2 * abs(down):
        return "left" if right < 0 else "right"
    if abs(down) > 2 * abs(right):
        return "above" if down < 0 else "below"
    return ""


def _inside(shape: str, r: int) -> NDArray[np.bool_]:
    """Which pixels of the box [2r+1, 2r+1] belong to the shape."""
    down, right = np.mgrid[-r : r + 1, -r : r + 1]
    square = down * down + right * right
    inside = {
        "square": (abs(down) <= r * 9 // 10) & (abs(right) <= r * 9 // 10),
        "circle": square <= r * r,
        "triangle": 2 * abs(right) <= down + r,
        "cross": (3 * abs(down) <= r) | (3 * abs(right) <= r),
        "ring": (square <= r * r) & (25 * square >= 9 * r * r),
    }
    return np.asarray(inside[shape])
