"""The canonical form: a `.jsonl` beside an image folder, one object per line.

    {"id": "7", "image": "images/x.png", "prompt": "What colour is it?", "answers": ["grey", "gray"], "kind": "colour"}
`image` is a path below the folder, null, or a list of at most one of them. `answers`, `kind` and `choices` (a list of
texts) may be left out or null; the other names that `columns.py` knows count too, such as `question` and `answer`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from importance.readers import columns as known
from importance.readers.columns import Reading
from importance.readers.fields import choices_of, identifier, json_object, kind_of, text_of
from importance.readers.images import Images
from importance.samples import Sample, SamplesError

MAX_LINE = 1_000_000  # bytes: a question, not a picture
_KEYS = ("id", "image", "prompt")
_ALSO = {"id": known.IDS, "image": ("image", "images"), "prompt": ("prompt", *known.PROMPTS)}
_LINE = '{"id": "7", "image": "images/x.png", "prompt": "…?", "answers": ["…"]}'
FORM = f"Write lines such as {_LINE}."


def read(path: Path, images: Images, annotations: Path | None, reading: Reading) -> Iterator[tuple[str, Sample]]:
    """(line, sample); blank lines are skipped. `annotations` must be None: the answers are in the lines."""
    if annotations is not None:
        raise SamplesError(f"annotations belong to VQAv2 questions (.json), got {path.name}. Leave them out.")
    for place, raw in _objects(path):
        yield place, _sample(raw, f"{path.name}, {place}", images, reading)


def _objects(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    try:
        with path.open("rb") as file:
            line = 0
            while text := file.readline(MAX_LINE + 1):
                line += 1
                place = f"line {line}"
                if len(text) > MAX_LINE:
                    raise SamplesError(
                        f"{path.name}, {place}: a line has at most {MAX_LINE:,} bytes. Name pictures, don't embed them."
                    )
                if text.strip():
                    yield place, json_object(text, f"{path.name}, {place}", f"Write it as {_LINE}.")
    except OSError as error:
        raise SamplesError(f"{path}: cannot be read ({error.strerror}). Give a .jsonl file of samples.") from error


def _sample(raw: Mapping[str, object], where: str, images: Images, reading: Reading) -> Sample:
    found = {key: known.first_of(_ALSO[key], raw) for key in _KEYS}
    missing = [key for key in _KEYS if not found[key]]
    if missing:
        raise SamplesError(
            f"{where}: a sample needs {', '.join(_KEYS)}; {', '.join(missing)} missing. Write it as {_LINE}; "
            "a sample without a picture says null."
        )
    reading.see(raw)
    name, image, prompt = (found[key][0] for key in _KEYS)
    listed, kind = known.first_of(known.CHOICES, raw), known.first_of(known.KINDS, raw)
    choices = choices_of(raw[listed[0]], listed[0], where) if listed else ()
    columns = known.holding_answers(raw, known.answer_columns(raw))
    column, answers = known.answers_in(raw, columns, choices, None, where)
    reading.answered(columns, column)
    for role, names in {**found, "choices": listed, "kind": kind}.items():
        reading.take(role, names)
    return Sample(
        identifier(raw[name], name, where),
        images.find(raw[image], where),
        text_of(raw[prompt], prompt, where),
        answers,
        kind_of(raw[kind[0]], kind[0], where) if kind else None,
        choices,
    )
