"""What every setting answered, beside the table: `samples.json` once, `answers/NAME.json` per setting.

The table has means; these tell whether two settings differ on the same questions. No torch, no numpy.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from importance.atomic import make_folder, write_atomically
from transform.errors import VerificationError
from transform.strict_json import read_json

SAMPLES = "samples.json"
FOLDER = "answers"


@dataclass(frozen=True)
class Samples:
    """The questions, in order. `pictures`: samples with one number share a picture; `tasks`: "" for none."""

    ids: tuple[str, ...]
    pictures: tuple[int, ...]
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """One setting's, in the samples' order; `scores` from 0 to 1."""

    answers: tuple[str, ...]
    scores: tuple[float, ...]


def write_samples(directory: Path, samples: Samples) -> None:
    """Write `samples.json`."""
    write_atomically(directory / SAMPLES, json.dumps(asdict(samples), ensure_ascii=False) + "\n", force=True)


def read_samples(directory: Path) -> Samples:
    """What `write_samples` wrote; raises VerificationError."""
    file = directory / SAMPLES
    record = _record(file)
    ids, tasks = (_column(file, record, name, str) for name in ("ids", "tasks"))
    pictures = _column(file, record, "pictures", int)
    if not len(ids) == len(tasks) == len(pictures):
        raise _damaged(file, f"as many ids, pictures and tasks, got {len(ids)}, {len(pictures)} and {len(tasks)}")
    return Samples(ids, pictures, tasks)


def write_answers(directory: Path, name: str, answers: Answers) -> None:
    """Write those of the setting `name`; the folder is made where there is none."""
    folder = directory / FOLDER
    make_folder(folder)
    text = json.dumps(asdict(answers), ensure_ascii=False) + "\n"
    write_atomically(folder / f"{name}.json", text, force=True, sweep=False)


def read_answers(directory: Path, name: str, samples: int) -> Answers:
    """What `write_answers` wrote, of so many samples; raises VerificationError."""
    if Path(name).name != name:
        raise VerificationError(f"a setting's name must be that of a file, got {name[:80]!r}. Run the sweep again.")
    file = directory / FOLDER / f"{name}.json"
    record = _record(file)
    found = Answers(
        _column(file, record, "answers", str), tuple(map(float, _column(file, record, "scores", int | float)))
    )
    if not len(found.answers) == len(found.scores) == samples:
        raise _damaged(file, f"{samples} answers and scores, got {len(found.answers)} and {len(found.scores)}")
    if not all(0 <= score <= 1 for score in found.scores):
        raise _damaged(file, "scores from 0 to 1")
    return found


def _record(file: Path) -> Mapping[str, object]:
    try:
        there = file.is_file()
    except OSError:  # no name of a file: too long
        there = False
    if not there:
        raise VerificationError(
            f"{file} must be there, it is missing. Run the sweep again, which does what is missing."
        )
    return read_json(file, way_out=f"Remove {file} and run the sweep again, which does what is missing.")


def _column(file: Path, record: Mapping[str, object], name: str, kind: Any) -> tuple[Any, ...]:
    values = record.get(name)
    if not isinstance(values, list) or any(not isinstance(v, kind) or isinstance(v, bool) for v in values):
        raise _damaged(file, f"a list of the right kind under {name!r}")
    return tuple(values)


def _damaged(file: Path, rule: str) -> VerificationError:
    return VerificationError(f"{file} must have {rule}. Remove it and run the sweep again, which does what is missing.")
