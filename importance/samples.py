"""Samples: a picture or none, a question about it, and the answers that count. What they are read from: `readers/`.

Pictures are opened when they are evaluated, not here: a sample holds a path, or the bytes of a picture file.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np

from transform.errors import KnobcastError
from transform.molmoe.pictures import ImageInput, decode_image, open_image


class SamplesError(KnobcastError):
    """A samples file that can't be read, or samples that this model or this metric can't take."""


@dataclass(frozen=True)
class EncodedImage:
    """A picture file as bytes, not yet decoded. Equal bytes are the same picture."""

    data: bytes = field(repr=False)

    def open(self) -> np.ndarray:
        """uint8 [h, w, 3]; raises ImageError. Nothing decoded is kept."""
        return decode_image(self.data)


Picture = ImageInput | EncodedImage


@dataclass(frozen=True)
class Sample:
    """One question. images: at most one; answers: any of them is right, none: unlabelled; kind: for `by_kind`.

    choices: the texts of A, B, C, … where the question offers some.
    """

    id: str
    images: tuple[Picture, ...]
    prompt: str
    answers: tuple[str, ...] = ()
    kind: str | None = None
    choices: tuple[str, ...] = ()


def require_answers(samples: Sequence[Sample], what: str) -> None:
    """Refuse samples of which some or all are unlabelled, for `what` compares with accepted answers."""
    without = [sample for sample in samples if not sample.answers]
    if not without:
        return
    if len(without) == len(samples):
        raise SamplesError(
            f"{what} needs samples with answers: 0 of {len(samples)} have any. Add answers (for VQAv2 questions the "
            "annotations file), or use a measure that needs none."
        )
    raise SamplesError(
        f"{what} needs answers for every sample: {len(without)} of {len(samples)} have none, the first is "
        f"{without[0].id!r}. Add them, or leave those samples out."
    )


def samples_digest(samples: Iterable[Sample]) -> str:
    """SHA-256 in hex of ids, prompts, answers, choices and pictures, in their order: the same data, the same digest.

    A picture counts with the bytes of its file, wherever that lies; one in memory with its pixels.
    """
    digest = hashlib.sha256()
    of_picture = _PictureDigests()
    for sample in samples:
        pictures = [of_picture(picture) for picture in sample.images]
        row = [sample.id, sample.prompt, sample.answers, sample.choices, pictures]
        digest.update(json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


class _PictureDigests:
    """Each path is read once: samples share pictures."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def __call__(self, picture: Picture) -> str:
        if isinstance(picture, EncodedImage):
            return f"file {hashlib.sha256(picture.data).hexdigest()}"
        if not isinstance(picture, str | PathLike):
            pixels = open_image(picture)
            return f"pixels {list(pixels.shape)} {hashlib.sha256(pixels.tobytes()).hexdigest()}"
        name = str(Path(picture))
        if name not in self.known:
            try:
                with Path(picture).open("rb") as file:
                    self.known[name] = f"file {hashlib.file_digest(file, 'sha256').hexdigest()}"
            except OSError as error:
                raise SamplesError(f"{name}: the image cannot be read ({error.strerror}). Check the path.") from error
        return self.known[name]
