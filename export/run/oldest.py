"""Is an onnxruntime too old for a graph's operators, or for a form's graphs that don't exist yet? Which one isn't?

The versions, here and in `Form.oldest`, were found by running golden prompts in one after the other. Nothing opens
onnxruntime.
"""

import re
from collections.abc import Iterable

from transform.forms import Form

QMOE = "com.microsoft::QMoE"
EARLIEST = "1.12"  # of graphs without operators that are onnxruntime's own
PACKED_ROWS = "1.23"  # of embedding tables in codes: older ones don't take bytes
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


def older_than_stated(graph: str, stated: object, version: str) -> str | None:
    """Why onnxruntime `version` can't run a graph, by io.json's `onnxruntime_by_graph`; None where it can, or where
    nothing is said of it."""
    said = stated.get(graph) if isinstance(stated, dict) else None
    match = re.fullmatch(r">=(\d+\.\d+)", said) if isinstance(said, str) else None
    if match is None or _numbers(version) >= _numbers(match[1]):
        return None
    return (
        f"{graph} needs onnxruntime {match[1]} or later, by io.json; this is {version}. Install onnxruntime {match[1]} "
        "or later."
    )


def oldest_of(graph: str, form: Form, activations: str | None = None) -> str:
    """The oldest onnxruntime that runs one of a form's graphs with these activations, by the graph's file name."""
    if graph == "preprocess.onnx":
        return EARLIEST
    if graph == "embedding.onnx" and form.runs_on_cpu:
        return EARLIEST if form.table_bits is None else PACKED_ROWS
    return form.vision_oldest if graph == "vision.onnx" else form.oldest_with(activations)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
