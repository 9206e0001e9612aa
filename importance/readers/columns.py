"""Which column of a table, or key of a line, says what: the names that published data sets use, and what was not read.

Names are in order of preference. A role may have several columns: choices in A, B, C, D; pictures in image_1, image_2;
answers in the first of their columns that has any in a row.
"""

import string
from collections.abc import Iterable, Mapping, Sequence

from importance.readers.answers import answers_of, by_number, choice_numbered
from importance.readers.fields import choices_of, is_text, short
from importance.samples import SamplesError

IDS = ("id", "question_id", "questionId", "qid", "pid", "index", "data_id")
PROMPTS = ("question", "prompt", "query")
# MathVista's `image` is a name in an archive, its picture is decoded_image
IMAGES = ("decoded_image", "image", "images", "picture", "image_path", "image_file", "file_name", "filename")
IMAGE_IDS = ("imageId", "image_id")
ANSWERS = ("answers", "answer", "label", "ground_truth", "gt_answer", "correct_answer", "multiple_choice_answer")
NUMBERED = ("correct_choice_idx", "answer_index", "answer_idx")
SPOKEN = ("direct_answers",)
CHOICES = ("choices", "options")
KINDS = ("kind", "answer_type")
LETTERED = ("{}", "choice_{}", "option_{}")
MAX_SHOWN = 20


def first_of(names: Sequence[str], there: Iterable[str]) -> tuple[str, ...]:
    """The preferred one of these names that is there, or none."""
    present = set(there)
    return next(((name,) for name in names if name in present), ())


def numbered_images(there: Iterable[str]) -> tuple[str, ...]:
    """image_1, image_2, … as far as they go."""
    present = set(there)
    return tuple(name for name in (f"image_{n}" for n in range(1, 27)) if name in present)


def choice_columns(there: Iterable[str]) -> tuple[str, ...]:
    """The column of choices, or one column per choice: A, B, …; choice_a, …; option_A, …."""
    present = set(there)
    for letters in (string.ascii_uppercase, string.ascii_lowercase):
        for form in LETTERED[letters.islower() :]:  # single small letters may be anything
            names = [form.format(letter) for letter in letters]
            found = names[: next((n for n, name in enumerate(names) if name not in present), len(names))]
            if len(found) > 1 and not first_of(CHOICES, present):
                return tuple(found)
    return first_of(CHOICES, present)


def answer_columns(there: Iterable[str]) -> tuple[str, ...]:
    """All columns that may hold answers."""
    present = set(there)
    return tuple(name for name in (*ANSWERS, *NUMBERED, *SPOKEN) if name in present)


def holding_answers(row: Mapping[str, object], columns: Sequence[str]) -> tuple[str, ...]:
    """Those of the columns that hold answers in this row, if any: a label of true or {…} may be something else."""
    return tuple(name for name in columns if name in ANSWERS[:2] or not isinstance(row[name], bool | dict))


def choices_in(row: Mapping[str, object], columns: Sequence[str], where: str) -> tuple[str, ...]:
    """A row's choices; of single columns those before the first without a text."""
    if len(columns) < 2:
        return choices_of(row[columns[0]], columns[0], where) if columns else ()
    texts = [row[name] if is_text(row[name]) and row[name] != "nan" else None for name in columns]
    given = [text for text in texts if text is not None]
    if None in texts[: len(given)]:
        raise SamplesError(
            f"{where}: choices must begin with {columns[0]} and leave none out, got {short(texts)}. Move them up."
        )
    return choices_of(given, columns[0], where)


def answers_in(
    row: Mapping[str, object],
    columns: Sequence[str],
    choices: Sequence[str],
    numbered: frozenset[str] | None,
    where: str,
) -> tuple[str | None, tuple[str, ...]]:
    """The column that has a row's answers, and the answers. numbered: the columns whose answers are numbers of
    choices; None: whole numbers are, where nothing else is possible."""
    for name in columns:
        value = row[name]
        if value is None or value == []:
            continue
        is_number = name in NUMBERED or (numbered is not None and name in numbered)
        if numbered is None and isinstance(value, int | float) and not isinstance(value, bool):
            is_number = is_number or by_number([(value, choices)], name, where)
        if is_number and choices:
            return name, choice_numbered(value, choices, name, where)
        if found := answers_of(value, name, where):
            return name, found
    return None, ()


class Reading:
    """What was read from which column, and which columns were not: for one line that says so."""

    def __init__(self) -> None:
        self.seen: dict[str, None] = {}
        self.read: set[str] = set()
        self.roles: dict[str, dict[str, None]] = {}

    def see(self, names: Iterable[str]) -> None:
        """These columns are there."""
        self.seen.update(dict.fromkeys(names))

    def answered(self, columns: Sequence[str], column: str | None, how: str = "") -> None:
        """Answers came from this one of the columns, behind others that were empty; None: all of them were."""
        self.read.update(columns if column is None else columns[: columns.index(column)])
        if column is not None:
            self.take("answers", [column], how)

    def take(self, role: str, columns: Iterable[str], how: str = "") -> None:
        """This role was read from these columns."""
        for name in columns:
            self.roles.setdefault(role, {})[f"{name}{how}"] = None
            self.read.add(name)

    def note(self) -> str:
        """Empty where every column was read and has its usual name."""
        said = [f"{role} from {_shown(list(names))}" for role, names in self.roles.items() if list(names) != [role]]
        left = [name for name in self.seen if name not in self.read]
        return "; ".join([*([", ".join(said)] if said else []), *([f"not read: {_shown(left)}"] if left else [])])


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(name[:80] for name in names[:MAX_SHOWN]) + more
