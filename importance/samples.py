"""Samples: a picture or none, a question about it, and the answers that count.

The canonical form is a `.jsonl` beside an image folder, one object per line:
    {"id": "7", "image": "images/x.png", "prompt": "What colour is it?", "answers": ["grey", "gray"], "kind": "colour"}
`image` is a path below the file's own folder, null, or a list of at most one of them; `kind` may be left out. Other
keys are the file's own business. Pictures are opened when they are evaluated, not here.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeGuard

from transform.errors import KnobcastError
from transform.molmoe.pictures import ImageInput

MAX_LINE = 1_000_000  # bytes: a question, not a picture
_KEYS = ("id", "image", "prompt", "answers")
_FORM = '{"id": "7", "image": "images/x.png", "prompt": "…?", "answers": ["…"]}'


class SamplesError(KnobcastError):
    """A samples file that can't be read, or samples that this model can't take."""


@dataclass(frozen=True)
class Sample:
    """One question. images: at most one, as a path or as pixels; answers: any of them is right; kind: for `by_kind`."""

    id: str
    images: tuple[ImageInput, ...]
    prompt: str
    answers: tuple[str, ...]
    kind: str | None = None


def read_samples(file: str | Path, limit: int | None = None) -> list[Sample]:
    """The samples of a `.jsonl` in its order, at most the first `limit`; raises SamplesError with file and line.

    Lines behind the limit are not read. Every image that is named must be there, inside the file's folder.
    """
    path = Path(file)
    if limit is not None and limit < 1:
        raise SamplesError(f"the limit must be at least 1 sample, got {limit}. Leave it out to take them all.")
    found: list[Sample] = []
    line_of: dict[str, int] = {}
    images = _Images(path.parent)
    for line, raw in _objects(path):
        where = f"{path.name}, line {line}"
        sample = _sample(raw, where, images)
        if sample.id in line_of:
            raise SamplesError(
                f"{where}: ids must be unique, {sample.id!r} is that of line {line_of[sample.id]}. Rename one of them."
            )
        line_of[sample.id] = line
        found.append(sample)
        if len(found) == limit:
            break
    if not found:
        raise SamplesError(f"{path.name}: at least one sample is needed, the file has 0. Write lines such as {_FORM}.")
    return found


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, its object); blank lines are skipped."""
    try:
        with path.open("rb") as file:
            line = 0
            while text := file.readline(MAX_LINE + 1):
                line += 1
                where = f"{path.name}, line {line}"
                if len(text) > MAX_LINE:
                    raise SamplesError(
                        f"{where}: a line has at most {MAX_LINE:,} bytes. Name pictures, don't embed them."
                    )
                if text.strip():
                    yield line, _object(text, where)
    except OSError as error:
        raise SamplesError(f"{path}: cannot be read ({error.strerror}). Give a .jsonl file of samples.") from error


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SamplesError(f"{where}: must be one JSON object in UTF-8 ({error}). Write it as {_FORM}.") from error
    if not isinstance(value, dict):
        raise SamplesError(f"{where}: must be a JSON object, got a {type(value).__name__}. Write it as {_FORM}.")
    return value


def _sample(raw: dict[str, Any], where: str, images: "_Images") -> Sample:
    missing = [key for key in _KEYS if key not in raw]
    if missing:
        raise SamplesError(
            f"{where}: a sample needs {', '.join(_KEYS)}; {', '.join(missing)} missing. Write it as {_FORM}; "
            "a sample without a picture says null."
        )
    for key in ("id", "prompt"):
        if not _is_text(raw[key]):
            raise SamplesError(f"{where}: {key} must be a string that isn't empty, got {_short(raw[key])}. Quote it.")
    answers, kind = raw["answers"], raw.get("kind")
    if not isinstance(answers, list) or not answers or not all(_is_text(answer) for answer in answers):
        raise SamplesError(
            f"{where}: answers must be a list of at least one string that isn't empty, got {_short(answers)}. "
            "List every answer that counts as right."
        )
    if kind is not None and not _is_text(kind):
        raise SamplesError(f"{where}: kind must be a string that isn't empty, got {_short(kind)}. Or leave it out.")
    return Sample(raw["id"], images.find(raw["image"], where), raw["prompt"], tuple(answers), kind)


class _Images:
    """Finds pictures below one folder. Each name is looked up once: samples share pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder.resolve()
        self.known: dict[str, Path] = {}

    def find(self, value: object, where: str) -> tuple[Path, ...]:
        given = value if isinstance(value, list) else [] if value is None else [value]
        names = [name for name in given if _is_text(name)]
        if len(given) > 1 or len(names) < len(given):
            raise SamplesError(
                f"{where}: image must be one path, null, or a list of at most one path, got {_short(value)}. "
                "Several images in one prompt were never trained."
            )
        return tuple(self._path(name, where) for name in names)

    def _path(self, name: str, where: str) -> Path:
        if name not in self.known:
            path = self.folder / name
            try:
                # the resolved path also sees where symbolic links lead
                inside = ".." not in PurePath(name).parts and path.resolve().is_relative_to(self.root)
                is_file = inside and path.is_file()
            except (OSError, ValueError, RuntimeError):  # no name for this file system, or links in a circle
                inside, is_file = True, False
            if PurePath(name).is_absolute() or not inside:
                raise SamplesError(
                    f"{where}: images must lie below the folder of the file, got {_short(name)}. Copy them there and "
                    "give a path without .. such as images/x.png."
                )
            if not is_file:
                raise SamplesError(f"{where}: the image must be a file, {_short(name)} is none. Check the path.")
            self.known[name] = path
        return self.known[name]


def _is_text(value: object) -> TypeGuard[str]:
    # JSON can spell half a character, which no tokenizer takes
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
