"""Samples: a picture or none, a question about it, and the answers that count. What they are read from: `readers/`.

Pictures are opened when they are evaluated, not here: a sample holds a path, or the bytes of a picture file.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
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


def read_samples(
    file: str | PathLike[str] | Sequence[str | PathLike[str]],
    limit: int | None = None,
    *,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Sample]:
    """The samples of a file in its order, at most the first `limit`; raises SamplesError with file and place.

    By the name's end: `.json` is a VQAv2 questions file, whose answers are in the file `annotations`; `.parquet` a
    table; anything else `.jsonl`, the canonical form. Several files, a pattern or a folder are the shards of one split.
    Every image that is named must be there, inside the folder `images`, else inside the file's own. What lies behind
    the limit is not read. `say` gets one line about columns that have other names or were not read.
    """
    from importance.readers import reader_of
    from importance.readers.columns import Reading
    from importance.readers.files import data_files
    from importance.readers.images import Images

    if limit is not None and limit < 1:
        raise SamplesError(f"the limit must be at least 1 sample, got {limit}. Leave it out to take them all.")
    if images is not None and not Path(images).is_dir():
        raise SamplesError(f"the images must be in a directory, {images} is none. Check the path.")
    files = data_files(file)
    if annotations is not None and len(files) > 1:
        raise SamplesError(f"annotations belong to one questions file, got {len(files)} files. Give one of them.")
    reading, found, known = Reading(), list[Sample](), _Ids()
    for path in files:
        reader = reader_of(path)
        before = len(found)
        folder = Images(Path(images) if images is not None else path.parent)
        for place, sample in reader.read(path, folder, None if annotations is None else Path(annotations), reading):
            numbered = sample if sample.id else replace(sample, id=str(len(found) + 1))
            found.append(known.own(numbered, path, place, reader.shared_ids))
            if len(found) == limit:
                break
        if len(found) == before:
            raise SamplesError(f"{path.name}: at least one sample is needed, the file has 0. {reader.form}")
        if len(found) == limit:
            break
    if say is not None and (note := reading.note()):
        say(f"{files[0].name}: {note}")
    return found


class _Ids:
    """Ids occur once. Where questions may share one, all but the first get a number behind it."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, set[str]]] = {}

    def own(self, sample: Sample, path: Path, place: str, shared: bool) -> Sample:
        """The sample under an id of its own; raises SamplesError."""
        if sample.id not in self.known:
            self.known[sample.id] = f"{path.name}, {place}", {sample.prompt}
            return sample
        first, prompts = self.known[sample.id]
        if not shared or sample.prompt in prompts:
            raise SamplesError(
                f"{path.name}, {place}: ids must be unique, {sample.id!r} is that of {first}. Rename one of them."
            )
        prompts.add(sample.prompt)
        return self.own(replace(sample, id=f"{sample.id}#{len(prompts)}"), path, place, shared)


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
