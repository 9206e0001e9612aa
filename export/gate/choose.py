"""Which gate a variant passes: the resident one, or block by block where two models don't fit into memory."""

from pathlib import Path

from transform.load import quiet_transformers
from transform.machine import fits, fitting_threads
from transform.plan import Plan
from transform.progress import Say
from transform.strict_json import Record


def run_gate(plan: Plan, directory: Path, onnx: bool, say: Say) -> Record:
    """Above a third of the free memory the comparison works block by block. Operators are tried out first."""
    quiet_transformers()
    tried: Record = {}
    if onnx:
        from export.gate.checking import computed_by
        from export.gate.op_checks import check_operators

        say("operators")
        tried = {
            "graphs_computed_by": computed_by(plan.form),
            "operators": check_operators(plan.form, plan.target.settings),
        }
    with fitting_threads(plan.source):
        if not fits(plan.source):
            from export.gate.blockwise import blockwise_gate

            return blockwise_gate(plan, directory, onnx, say) | tried
        from export.gate.resident import gate

        return gate(plan, directory, onnx, say) | tried
