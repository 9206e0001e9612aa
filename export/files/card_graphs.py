"""The lines of a card about its graphs: the form, the oldest onnxruntime of each, what rounded activations cost."""

from pathlib import Path

from export.files.verification import Measured, Verification
from export.run.io_file import FILE
from transform.forms import ROUNDED
from transform.plan import Plan
from transform.strict_json import read_json


def graph_lines(directory: Path, plan: Plan, verification: Verification | None) -> list[str]:
    """What `io.json` in `directory` says of the graphs there, and how far rounding took them; empty without graphs."""
    if not (directory / FILE).is_file():
        return []
    lines = [f"They are of the `{plan.form.name}` form. Each runs on this onnxruntime or a later one:"]
    lines += ["", "| graph | onnxruntime |", "|---|---|"]
    stated = read_json(directory / FILE)["onnxruntime_by_graph"]
    lines += [f"| `{name}` | {oldest.removeprefix('>=')} |" for name, oldest in stated.items()]
    if plan.activations == ROUNDED:
        lines += [
            "",
            "The decoder multiplies quantised matrices with activations rounded to 8 bits (`--activations int8`): its "
            "tokens may part from PyTorch's where two are close.",
        ]
        if verification and (found := verification.int8_activations):
            lines += [
                f"At a typical position of {_prompt(found)} its logits are {found['typical']:.2g} of their size away "
                f"(root mean square; at most {found['relative_tolerance']:g}), over all positions "
                f"{found['root_mean_square']:.2g}. The comparisons above are without this rounding."
            ]
    return lines


def _prompt(found: Measured) -> str:
    """Which of the gate's prompts was near enough."""
    number = round(found.get("prompt", 1))
    if number == 1:
        return "the gate's prompt"
    return f"prompt {number} of the gate, as {number - 1} before it came out further away than allowed,"
