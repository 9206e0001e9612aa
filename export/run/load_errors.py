"""What onnxruntime says of a graph it can't load: is it too old, or is the graph damaged?

Operators of its own change between its versions under the same number, so a graph that doesn't fit one of them needs
another onnxruntime. The standard's operators don't: there it is the graph.
"""

import re
from collections.abc import Iterable

_LACKING = (
    r"(?P<op>[\w.]*:?\w+)\(-?\d+\) is not a registered function/op",
    r"No Op registered for (?P<op>[\w.:]+)",
    r"Could not find an implementation for (?P<op>[\w.:]+)\(",
    r"NOT_IMPLEMENTED.*?running (?P<op>[\w.]+) node",
)
# The signature of the node comes in between, and is longer than the reason.
_MISFIT = (
    r"In Node, \(\"[^\"]*\", (?P<op>\w+), .*\) , Error (?P<why>.*)",
    r"(?P<why>Type Error: .* of operator \((?P<op>\w+)\).*)",
)
_STAMPED = (
    r"(?P<what>model IR version): (?P<number>\d+), max supported",
    r"(?P<what>Opset) (?P<number>\d+) is under development",
)
LONGEST = 300


def too_old_to_load(graph: str, reason: str, operators: Iterable[str], provider: str, version: str) -> str | None:
    """The refusal where another onnxruntime would load the graph, whose `operators` are "Gemm", "com.microsoft::MoE".

    None where none would.
    """
    for pattern in _LACKING:
        if match := re.search(pattern, reason):
            return (
                f"{graph} needs the operator {match['op']}, which onnxruntime {version} doesn't have for {provider}. "
                "Install a newer onnxruntime, or export the variant with --form cpu."
            )
    for pattern in _MISFIT:
        match = re.search(pattern, reason)
        if match and any(operator.endswith(f"::{match['op']}") for operator in operators):
            return (
                f"{graph} needs {match['op']} as of a newer onnxruntime, {version} has another one: "
                f"{match['why'][:LONGEST].rstrip('.')}. Install a newer onnxruntime, or export with --form cpu."
            )
    for pattern in _STAMPED:
        if match := re.search(pattern, reason):
            what = match["what"].removeprefix("model ")
            return (
                f"{graph} has the {what} {match['number']} of ONNX, which is newer than onnxruntime {version}. Install "
                "a newer onnxruntime, or export the model again with an older one."
            )
    return None


def shortened(reason: object) -> str:
    """The first line, without the place in onnxruntime's source and a node's signature, which it puts first."""
    lines = str(reason).strip().splitlines() or ["no reason given"]
    line = re.sub(r"/onnxruntime_src/\S+ .*?\) (?=[A-Z])", "", lines[0])
    line = re.sub(r"In Node, \(\"([^\"]*)\", (\w+), .*\) , Error ", r"In Node \1, \2: ", line)
    return line[:LONGEST].rstrip(".")
