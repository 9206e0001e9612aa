"""Answers as data sets have them: texts, numbers, lists, what annotators said, or the number of a choice from 0."""

from collections.abc import Iterable, Sequence

from importance.readers.fields import is_text, listed, number_as_text, short
from importance.samples import SamplesError
from importance.task_metrics.multiple_choice import choice_named


def answers_of(value: object, name: str, where: str) -> tuple[str, ...]:
    """Every accepted answer, in order; none for null, an empty list or text, or NaN.

    One value is one answer, but `answers` and `direct_answers` are lists. Annotators who said nothing are kept.
    """
    plural = name.endswith("answers")
    given = listed(value) if plural else value
    blank = isinstance(given, str) and not given.strip() and not plural
    if given is None or given == [] or blank or number_as_text(given) is None:
        return ()
    if not isinstance(given, list):
        given = None if plural else [given]
    said = [number_as_text(one.get("answer") if isinstance(one, dict) else one) for one in given or ()]
    texts = [one for one in said if is_text(one) or (isinstance(one, str) and not one.strip())]
    if given is None or len(texts) < len(said) or not any(map(is_text, texts)):
        raise SamplesError(
            f"{where}: {'answers' if plural else name} must be a list of strings, of numbers or of objects with the "
            f"string answer, at least one not empty, got {short(value)}. List every answer that counts as right, or "
            "leave it out."
        )
    return tuple(texts)


def choice_numbered(value: object, choices: Sequence[str], name: str, where: str) -> tuple[str, ...]:
    """The text of the choice with this number, from 0."""
    number = _whole(value)
    if number is None or not 0 <= number < len(choices):
        raise SamplesError(
            f"{where}: {name} must be the number of a choice, from 0 to {len(choices) - 1}, got {short(value)}. Or "
            "give the choice's text."
        )
    return (choices[number],)


def by_number(rows: Iterable[tuple[object, Sequence[str]]], name: str, where: str) -> bool:
    """Whether (answer, choices) name choices by their numbers from 0; False: by text or letter, or nothing tells.

    All rows decide together, for among numbers as choices one answer can be both. Raises SamplesError where whole
    numbers may be either, or neither.
    """
    texts = numbers = whole = True
    labelled, conflict = 0, False
    for value, choices in rows:
        if not choices or isinstance(value, list | dict) or number_as_text(value) in (None, ""):
            continue
        labelled += 1
        number, named = _whole(value), choice_named(str(number_as_text(value)), choices)
        whole = whole and not isinstance(value, str)
        texts = texts and named is not None
        numbers = numbers and number is not None and number < len(choices)
        conflict = conflict or named != number
    if labelled and whole and (conflict if texts and numbers else not (texts or numbers)):
        raise SamplesError(
            f"{where}: {name} must be the text of a choice or its number from 0, the whole numbers there may be "
            f"{'both' if texts else 'neither'}. Write the choices' texts."
        )
    return bool(labelled) and numbers and not texts


def _whole(value: object) -> int | None:
    text = number_as_text(value)
    return int(text) if isinstance(text, str) and text.strip().isascii() and text.strip().isdigit() else None
