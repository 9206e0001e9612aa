"""Model types that are known and can't be cut, each with the reason and, where there is one, what to take instead."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from transform.strict_json import parse

FILE = Path(__file__).parent / "_absent.json"


class Absent(NamedTuple):
    """Why a model type has no data file, and what to take instead, or an empty text."""

    why: str
    instead: str = ""


@cache
def absent_model_types() -> Mapping[str, Absent]:
    """Every such model type."""
    return {name: Absent(**entry) for name, entry in sorted(parse(FILE.read_bytes()).items())}
