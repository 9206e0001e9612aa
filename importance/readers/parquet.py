"""Parquet tables as on the hub, one row per sample, or per picture with several questions. Needs pyarrow.

Which columns say what is in `columns.py`. A picture is a struct of bytes and path, the bytes alone, a path, a list of
one of these, null, or a file named by its id. `texts` holds questions and answers as in The Cauldron. A table without
ids gets the samples' numbers. Pictures in it stay encoded in memory, equal ones once. Row groups are read one by one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from importance.readers import columns as known
from importance.readers.answers import answers_of, by_number
from importance.readers.columns import Reading
from importance.readers.fields import identifier, kind_of, short, text_of
from importance.readers.images import Images
from importance.samples import Picture, Sample, SamplesError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

MAX_GROUP = 8_000_000_000  # bytes of a row group when unpacked
BATCH = 16  # rows that are unpacked at a time
FORM = "Give a table with the columns id, image, question and answers, one row per sample."
TURNS = "texts"


@dataclass(frozen=True)
class Columns:
    """The table's columns for each role; none for a role that it doesn't have. numbered: answers that are numbers of
    choices."""

    id: tuple[str, ...]
    image: tuple[str, ...]
    image_id: tuple[str, ...]
    prompt: tuple[str, ...]
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    kind: tuple[str, ...]
    turns: tuple[str, ...] = ()
    numbered: frozenset[str] = frozenset()

    @property
    def all(self) -> list[str]:
        """Those that are read."""
        roles = (self.id, self.image, self.image_id, self.prompt, self.answers, self.choices, self.kind, self.turns)
        return list(dict.fromkeys(name for names in roles for name in names))


def read(path: Path, images: Images, annotations: Path | None, reading: Reading) -> Iterator[tuple[str, Sample]]:
    """(row, sample). `annotations` must be None: the answers are a column."""
    if annotations is not None:
        raise SamplesError(f"annotations belong to VQAv2 questions (.json), got {path.name}. Leave them out.")
    for number, (row, columns) in enumerate(_rows(path, reading), 1):
        place = f"row {number}"
        where = f"{path.name}, {place}"
        if columns.turns:
            for sample in _turns(row, columns, where, images):
                yield place, sample
        else:
            yield place, _sample(row, columns, where, images, reading)


def _rows(path: Path, reading: Reading) -> Iterator[tuple[Mapping[str, object], Columns]]:
    """(row, the columns of the table)."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise SamplesError(
            f"{path.name}: tables need pyarrow, which isn't installed. Install it: pip install -e '.[eval]'."
        ) from error
    try:
        with pq.ParquetFile(path) as table:
            columns = _columns(table, path)
            _take(columns, table.schema_arrow.names, reading)
            for group in range(table.num_row_groups):
                size = table.metadata.row_group(group).total_byte_size
                if size > MAX_GROUP:
                    raise SamplesError(
                        f"{path.name}: a row group has at most {MAX_GROUP:,} bytes, number {group + 1} has {size:,}. "
                        "Write the table with smaller row groups."
                    )
                for batch in table.iter_batches(BATCH, row_groups=[group], columns=columns.all):
                    for row in batch.to_pylist():
                        yield row, columns
    except (pa.ArrowException, ValueError, OverflowError) as error:  # text that is none, times beyond all calendars
        raise SamplesError(f"{path.name}: must be an intact parquet file ({_line(error)}). {FORM}") from error
    except OSError as error:
        raise SamplesError(f"{path}: cannot be read ({error.strerror or _line(error)}). {FORM}") from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _columns(table: "ParquetFile", path: Path) -> Columns:
    there: list[str] = table.schema_arrow.names
    image = known.first_of(known.IMAGES, there) or known.numbered_images(there)
    image_id = () if image else known.first_of(known.IMAGE_IDS, there)
    prompt = known.first_of(known.PROMPTS, there)
    turns = (TURNS,) if TURNS in there and not prompt else ()
    needed = {"image": image or image_id, "question or prompt": prompt or turns}
    missing = [name for name, found in needed.items() if not found]
    if missing:
        raise SamplesError(
            f"{path.name}: the columns {', '.join(missing)} are missing, got {short(there)}. {FORM} A table without "
            "pictures has nulls."
        )
    name = known.first_of(known.IDS, there)
    if turns:
        return Columns(name, image, image_id, (), (), (), (), turns)
    answers, choices = known.answer_columns(there), known.choice_columns(there)
    kind = known.first_of(known.KINDS, there)
    numbered = frozenset(column for column in answers if choices and _is_numbered(table, column, choices, path))
    return Columns(name, image, image_id, prompt, answers, choices, kind, (), numbered)


def _is_numbered(table: "ParquetFile", column: str, choices: Sequence[str], path: Path) -> bool:
    """Whether a column's answers are numbers of choices: all of its rows say so."""
    if column in known.NUMBERED:
        return True

    def rows() -> Iterator[tuple[object, Sequence[str]]]:
        for batch in table.iter_batches(1024, columns=[column, *choices]):
            for row in batch.to_pylist():
                if not isinstance(row[column], list | dict):
                    yield row[column], known.choices_in(row, choices, path.name)

    return by_number(rows(), column, path.name)


def _take(columns: Columns, there: Sequence[str], reading: Reading) -> None:
    reading.see(there)
    for role in ("id", "image", "image_id", "prompt", "choices", "kind", "turns"):
        names = getattr(columns, role)
        reading.take({"image_id": "image", "turns": "questions and answers"}.get(role, role), names)
    if not columns.id:
        reading.take("id", ["the sample's number"])


def _sample(row: Mapping[str, object], columns: Columns, where: str, images: Images, reading: Reading) -> Sample:
    choices = known.choices_in(row, columns.choices, where)
    holding = known.holding_answers(row, columns.answers)
    column, answers = known.answers_in(row, holding, choices, columns.numbered, where)
    reading.answered(holding, column, " (the number of a choice)" if column in columns.numbered else "")
    prompt = text_of(row[columns.prompt[0]], columns.prompt[0], where)
    if columns.image and columns.image[0] == "image_1":
        prompt = prompt.replace("<image 1>", "").strip() or prompt  # where the picture was; it comes first here
    kind = kind_of(row[columns.kind[0]], columns.kind[0], where) if columns.kind else None
    return Sample(_id(row, columns, where), _pictures(row, columns, where, images), prompt, answers, kind, choices)


def _turns(row: Mapping[str, object], columns: Columns, where: str, images: Images) -> Iterator[Sample]:
    """Each question of a row with its answer, asked alone."""
    turns = row[columns.turns[0]]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise SamplesError(
            f"{where}: {TURNS} must be a list of structs with user and assistant, got {short(turns)}. {FORM}"
        )
    pictures, name = _pictures(row, columns, where, images), _id(row, columns, where)
    for number, turn in enumerate(turns, 1):
        own = name and (f"{name}#{number}" if len(turns) > 1 else name)
        prompt = text_of(turn.get("user"), "user", where)
        yield Sample(own, pictures, prompt, answers_of(turn.get("assistant"), "assistant", where))


def _id(row: Mapping[str, object], columns: Columns, where: str) -> str:
    return identifier(row[columns.id[0]], columns.id[0], where) if columns.id else ""


def _pictures(row: Mapping[str, object], columns: Columns, where: str, images: Images) -> tuple[Picture, ...]:
    if columns.image_id:
        return images.named(row[columns.image_id[0]], columns.image_id[0], where)
    if len(columns.image) > 1:
        return images.find([row[name] for name in columns.image if row[name] is not None], where)
    return images.find(row[columns.image[0]], where)
