"""Which gate a variant passes: the resident one, or block by block where two models don't fit into memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.machine import fits, fitting_threads
from transform.plan import Plan


def run_gate(plan: Plan, directory: Path, onnx: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Above a third of the free memory the comparison works block by block. Operators are tried out first."""
    quiet_transformers()
    tried: dict[str, Any] = {}
    if onnx:
        from export.numpy_run.graphs import computed_by
        from export.op_checks import check_operators

        say("operators")
        tried = {
            "graphs_computed_by": computed_by(plan.form),
            "operators": check_operators(plan.form, plan.target.settings),
        }
    with fitting_threads(plan.source):
        if not fits(plan.source):
            from export.blockwise import blockwise_gate

            return blockwise_gate(plan, directory, onnx, say) | tried
        from export.verify import gate

        return gate(plan, directory, onnx, say) | tried


def quiet_transformers() -> None:
    """One bar per loaded model would hide ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
