"""What the readers share: checks of single values."""

import ast
import json
import math
from decimal import Decimal
from typing import TypeGuard

from importance.samples import SamplesError

MAX_LETTERS = 26


def json_object(text: bytes, where: str, form: str) -> dict[str, object]:
    """One JSON object in UTF-8, with or without a byte order mark."""
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SamplesError(f"{where}: must be one JSON object in UTF-8 ({error}). {form}") from error
    if not isinstance(value, dict):
        raise SamplesError(f"{where}: must be a JSON object, got a {type(value).__name__}. {form}")
    return value


def text_of(value: object, name: str, where: str) -> str:
    """A string that isn't empty."""
    if not is_text(value):
        raise SamplesError(f"{where}: {name} must be a string that isn't empty, got {short(value)}. Quote it.")
    return value


def identifier(value: object, name: str, where: str) -> str:
    """A string that isn't empty, or a whole number as one."""
    whole = isinstance(value, int | float | Decimal) and not isinstance(value, bool) and value % 1 == 0
    return text_of(number_as_text(value) if whole else value, name, where)


def kind_of(value: object, name: str, where: str) -> str | None:
    """A string that isn't empty, or null; of several strings all of them."""
    if isinstance(value, list) and value and all(map(is_text, value)):
        return ", ".join(value)
    if value is not None and not is_text(value):
        raise SamplesError(f"{where}: {name} must be a string that isn't empty, got {short(value)}. Or leave it out.")
    return value


def choices_of(value: object, name: str, where: str) -> tuple[str, ...]:
    """A list of 2 to 26 strings or numbers, also one that is spelled as a text; null or an empty list for none."""
    given = listed(value)
    if given is None or given == []:
        return ()
    texts = [number_as_text(one) for one in given] if isinstance(given, list) else []
    if not isinstance(given, list) or not 2 <= len(given) <= MAX_LETTERS or not all(map(is_text, texts)):
        raise SamplesError(
            f"{where}: {name} must be a list of 2 to {MAX_LETTERS} strings that aren't empty, got {short(value)}. "
            "Or leave it out."
        )
    return tuple(filter(is_text, texts))


def annotators(value: object, where: str) -> tuple[str, ...]:
    """What each annotator said: strings, or objects with `answer`; duplicates stay, and so does one who said nothing.

    Null or an empty list: none, the sample is unlabelled.
    """
    if value is None or value == []:
        return ()
    given = [one.get("answer") if isinstance(one, dict) else one for one in value] if isinstance(value, list) else []
    said = [one for one in given if is_text(one) or (isinstance(one, str) and not one.strip())]
    if len(said) < len(given) or not any(map(is_text, said)):
        raise SamplesError(
            f"{where}: answers must be a list of strings or of objects with the string answer, at least one not empty, "
            f"got {short(value)}. Give one answer per annotator."
        )
    return tuple(said)


def is_text(value: object) -> TypeGuard[str]:
    """A string that isn't blank. JSON can spell half a character, which no tokenizer takes."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def number_as_text(value: object) -> object:
    """A finite number as a text, 2.0 as "2"; null for one that isn't a number; everything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return value
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return None
    return str(int(value)) if value == int(value) else str(value)


def listed(value: object) -> object:
    """A list of strings that is spelled as one text, as in MMMU and A-OKVQA; everything else as it is."""
    if not isinstance(value, str) or not (value.strip().startswith("[") and value.strip().endswith("]")):
        return value
    try:
        found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value
    return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else value


def short(value: object) -> str:
    """Its repr, cut at 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
