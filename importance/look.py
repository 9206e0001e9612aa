"""Samples are looked at before a model is loaded: every picture opened whole, every prompt measured.

A damaged picture would otherwise end an evaluation when its turn comes, with all answers so far. All of them are named
at once. Opening takes a small part of what the vision tower does with a picture.
"""

from collections.abc import Sequence
from os import PathLike

import numpy as np

from importance.prompts import Prompts
from importance.samples import EncodedImage, Picture, Sample, SamplesError
from transform.molmoe.pictures import ImageError, open_image

MAX_NAMED = 10


def look(samples: Sequence[Sample], prompts: Prompts, positions: int, new_tokens: int) -> None:
    """Refuse samples whose picture can't be seen, or whose begin token, image, prompt and answer don't fit."""
    lengths: dict[object, int] = {}  # tokens of a picture's prefix; below 0: it can't be seen
    damaged: list[tuple[str, ImageError]] = []
    for sample in samples:
        question = len(prompts.question(sample))
        picture = sample.images[0] if sample.images else None
        key = picture if picture is None or isinstance(picture, str | PathLike | EncodedImage) else id(picture)
        if key not in lengths:
            try:
                lengths[key] = prompts.length(picture if picture is None else opened(picture))
            except ImageError as error:
                lengths[key] = -1
                damaged.append((sample.id, error))
        if lengths[key] >= 0:
            check_room(sample, lengths[key], question, new_tokens, positions)
    if damaged:
        (first, reason), more = damaged[0], [repr(name) for name, _ in damaged[1:]]
        cut = f" and {len(more) - MAX_NAMED} more" if len(more) > MAX_NAMED else ""
        others = f" The pictures of {', '.join(more[:MAX_NAMED])}{cut} are damaged as well." if more else ""
        raise SamplesError(
            f"sample {first!r}: {reason}{others} Nothing was asked: leave these samples out, or mend them."
        ) from reason


def opened(picture: Picture) -> np.ndarray:
    """uint8 [h, w, 3]; raises ImageError."""
    return picture.open() if isinstance(picture, EncodedImage) else open_image(picture)


def check_room(sample: Sample, prefix: int, question: int, answer: int, positions: int) -> None:
    """Refuse a sample that doesn't fit the model's positions, all in tokens."""
    needed = prefix + question + answer
    if needed > positions:
        raise SamplesError(
            f"sample {sample.id!r}: begin token, image, prompt and answer must fit the model's {positions} positions: "
            f"{prefix} + {question} + {answer} = {needed}. Shorten or remove the sample, or use fewer vision tokens or "
            "new tokens."
        )
