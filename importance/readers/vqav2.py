"""VQAv2 as released: a questions file, an annotations file, and a folder of COCO pictures.

Pictures are `COCO_<data_subtype>_<image_id, 12 digits>.jpg`, else `<12 digits>.jpg`. Without annotations the samples
are unlabelled (the test splits). All annotators' answers are kept in order; `kind` is the answer type.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from importance.readers.columns import Reading
from importance.readers.fields import annotators, identifier, json_object, kind_of, short, text_of
from importance.readers.images import Images
from importance.samples import Sample, SamplesError

MAX_BYTES = 1_000_000_000  # the largest released file, the training annotations, has about a third of it
FORM = 'Give a VQAv2 questions file: {"questions": [{"question_id": 1, "image_id": 2, "question": "…?"}]}.'
_ANSWERS = 'Give a VQAv2 annotations file: {"annotations": [{"question_id": 1, "answers": [{"answer": "…"}]}]}.'
_SPLIT = re.compile(r"-\w+?(?=\d)")  # test-dev2015 is part of test2015, and so are its pictures


def read(path: Path, images: Images, annotations: Path | None, _: Reading) -> Iterator[tuple[str, Sample]]:
    """(question, sample), in the order of the questions file. What is read is the same in all of them."""
    raw = _load(path, FORM)
    questions = _entries(raw, "questions", path, FORM)
    subtype = _subtype(raw, path)
    labels = None if annotations is None else _labels(annotations)
    for number, given in enumerate(questions, 1):
        place = f"question {number}"
        where = f"{path.name}, {place}"
        entry = _need(given, ("question_id", "image_id", "question"), where, FORM)
        name = identifier(entry["question_id"], "question_id", where)
        picture = images.first(_names(entry["image_id"], subtype, where), where)
        answers, kind = _label(labels, name, annotations, where)
        yield place, Sample(name, (picture,), text_of(entry["question"], "question", where), answers, kind)


def _label(
    labels: dict[str, tuple[str, Mapping[str, object]]] | None, name: str, file: Path | None, where: str
) -> tuple[tuple[str, ...], str | None]:
    if labels is None or file is None:
        return (), None
    if name not in labels:
        raise SamplesError(
            f"{where}: every question must have its annotation, {file.name} has none for {name} among "
            f"{len(labels)}. Give the annotations of the same split."
        )
    place, entry = labels[name]
    there = f"{file.name}, {place}"
    answers = annotators(entry["answers"], there)
    if not answers:
        raise SamplesError(f"{there}: an annotation must have at least 1 answer, got 0. Remove it, or add some.")
    return answers, kind_of(entry.get("answer_type"), "answer_type", there)


def _labels(path: Path) -> dict[str, tuple[str, Mapping[str, object]]]:
    """question_id -> (place, annotation)."""
    found: dict[str, tuple[str, Mapping[str, object]]] = {}
    for number, given in enumerate(_entries(_load(path, _ANSWERS), "annotations", path, _ANSWERS), 1):
        place = f"annotation {number}"
        where = f"{path.name}, {place}"
        entry = _need(given, ("question_id", "answers"), where, _ANSWERS)
        name = identifier(entry["question_id"], "question_id", where)
        if name in found:
            raise SamplesError(
                f"{where}: question ids must be unique, {name} is that of {found[name][0]}. Remove one of them."
            )
        found[name] = place, entry
    return found


def _names(image: object, subtype: str | None, where: str) -> list[str]:
    if not isinstance(image, int) or isinstance(image, bool) or not 0 <= image < 10**12:
        raise SamplesError(
            f"{where}: image_id must be a whole number of up to 12 digits, got {short(image)}. Write 42."
        )
    plain = f"{image:012d}.jpg"
    splits = [] if subtype is None else dict.fromkeys((subtype, _SPLIT.sub("", subtype)))
    return [*(f"COCO_{split}_{plain}" for split in splits), plain]


def _subtype(raw: Mapping[str, object], path: Path) -> str | None:
    subtype = raw.get("data_subtype")
    if subtype is not None and not (isinstance(subtype, str) and re.fullmatch(r"[\w-]{1,40}", subtype)):
        raise SamplesError(
            f"{path.name}: data_subtype must be a name such as val2014, got {short(subtype)}. Or leave it out."
        )
    return subtype


def _load(path: Path, form: str) -> Mapping[str, object]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SamplesError(f"{path}: cannot be read ({error.strerror}). {form}") from error
    if len(text) > MAX_BYTES:
        raise SamplesError(f"{path.name}: a file has at most {MAX_BYTES:,} bytes. Cut it into smaller ones.")
    return json_object(text, path.name, form)


def _entries(raw: Mapping[str, object], key: str, path: Path, form: str) -> list[object]:
    entries = raw.get(key)
    if not isinstance(entries, list):
        raise SamplesError(f"{path.name}: must have a list of {key}, got {short(entries)}. {form}")
    return list(entries)


def _need(entry: object, keys: tuple[str, ...], where: str, form: str) -> Mapping[str, object]:
    """The entry, an object with these keys."""
    if not isinstance(entry, dict):
        raise SamplesError(f"{where}: must be a JSON object, got a {type(entry).__name__}. {form}")
    missing = [key for key in keys if key not in entry]
    if missing:
        raise SamplesError(f"{where}: {', '.join(keys)} are needed, {', '.join(missing)} missing. {form}")
    return entry
