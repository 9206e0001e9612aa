"""The oldest onnxruntime that runs a form's graphs: the one place that says so.

Found by running golden prompts, version by version. `io.json`, refusals and docs/forms.md say what is here.
Nothing opens onnxruntime.
"""

import re
from collections.abc import Iterable

QMOE = "com.microsoft::QMoE"
OPERATORS = {QMOE: "1.25"}  # older ones have it with fewer inputs, or not at all
# No GPU was there to try older versions for the cuda form: what this project itself asks for.
FORMS = {"cpu": "1.15", "cuda": "1.25", "int4": OPERATORS[QMOE], "int8": OPERATORS[QMOE]}
_NEEDED = {"int4": (QMOE,), "int8": (QMOE,)}


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


def too_old_for(form: str, version: str) -> str | None:
    """The same for the graphs of a form that don't exist yet."""
    return too_old(f"The {form} form", _NEEDED.get(form, ()), version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
