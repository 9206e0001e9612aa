"""Values of JSON files: looked up by a dotted path, quoted in messages; names of data files -> what they stand for."""

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any


def lookup(config: Mapping[str, object], dotted: str, default: object = None) -> Any:
    """The value at `a.b.c` in a nested mapping, or the default where a level is absent or no mapping."""
    value: object = config
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def shown(value: object) -> str:
    """A value of a JSON file as messages quote it, cut to a line."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def imported(dotted: str) -> Any:
    """What `package.module.Name` names; imports the module."""
    home, _, name = dotted.rpartition(".")
    return getattr(import_module(home), name)
