"""What differs between versions of transformers, in one place.

`modeling_molmoe.py` runs unchanged under all of them: it calls transformers' layers by arguments that are looked up
here once, and takes none that it doesn't know. This file travels with each variant.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import transformers
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.utils import logging

from .versions import TESTED_TRANSFORMERS, tested_range

# The argument and the output that hold keys and values: `past_key_values` in 5.23, `cache` since 5.24.
CACHE = "cache" if "cache" in {field.name for field in fields(MoeCausalLMOutputWithPast)} else "past_key_values"


def warn_if_untested(what: str) -> None:
    """One warning for each process where this transformers is older or newer than those that were tried."""
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    oldest, newest = (tuple(map(int, version.split("."))) for version in TESTED_TRANSFORMERS)
    if not oldest <= release <= newest:
        logging.get_logger("transformers." + __name__).warning_once(
            f"{what} was tested with {tested_range()}, this is {transformers.__version__}: "
            "compare some answers with those of a tested version before you rely on it."
        )


def insist_on_arguments(function: Callable[..., Any], names: Iterable[str]) -> None:
    """Raise ImportError if a function of transformers doesn't name each argument: it would swallow it unread."""
    lacking = sorted(set(names) - inspect.signature(function).parameters.keys())
    if lacking:
        raise ImportError(
            f"transformers {transformers.__version__} has no {', '.join(lacking)} in {function.__qualname__} and would "
            f"swallow it: this code knows {tested_range()}. Install one of these."
        )


def refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise TypeError for arguments that nobody would read."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise TypeError(
            f"{what} takes no {', '.join(unknown)} (transformers is {transformers.__version__}, tested were "
            f"{tested_range()}). Leave it out, or use a tested version if transformers itself passed it."
        )
