"""Is an onnxruntime too old for a graph's operators, or for a form's graphs that don't exist yet?

The versions, here and in `Form.oldest`, were found by running golden prompts in one after the other. Nothing opens
onnxruntime.
"""

import re
from collections.abc import Iterable

from transform.forms import Form

QMOE = "com.microsoft::QMoE"
OPERATORS = {QMOE: "1.25"}  # older ones have it with fewer inputs, or not at all


def too_old(what: str, operators: Iterable[str], version: str) -> str | None:
    """Why onnxruntime `version` can't run `operators` ("com.microsoft::QMoE"), and the way out; None where it can."""
    for operator in sorted(operators):
        oldest = OPERATORS.get(operator)
        if oldest is not None and _numbers(version) < _numbers(oldest):
            return (
                f"{what} needs {operator.rpartition(':')[2]} as of onnxruntime {oldest}, this is {version}. Install "
                f"onnxruntime {oldest} or later, or export with --form cpu."
            )
    return None


def too_old_for(form: Form, version: str, activations: str | None = None) -> str | None:
    """The same for the graphs of a form that don't exist yet, with these activations."""
    oldest = form.oldest_with(activations)
    if oldest != form.oldest and _numbers(version) < _numbers(oldest):
        return (
            f"The {form.name} form with {activations} activations needs {form.experts} as of onnxruntime {oldest}, "
            f"this is {version}. Install onnxruntime {oldest} or later, or leave out --activations."
        )
    return too_old(f"The {form.name} form", (f"com.microsoft::{form.experts}",), version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
