"""Which gate a variant passes: the resident one, or block by block where two models don't fit into memory."""

from dataclasses import replace

from export.files.verification import Verification
from transform.checkpoint import Checkpoint
from transform.load import quiet_transformers
from transform.machine import fits, fitting_threads
from transform.plan import Plan
from transform.progress import Say


def run_gate(plan: Plan, written: Checkpoint, onnx: bool, say: Say) -> Verification:
    """Above a third of the free memory the comparison works block by block. Operators are tried out first.

    `written` is the variant as it was read from its directory. Raises VerificationError.
    """
    from export.gate.compare import windows_not_passed

    quiet_transformers()
    computed, operators = None, None
    if onnx:
        from export.gate.checking import computed_by
        from export.gate.op_checks import check_operators
        from export.gate.op_rig import Kind

        say("operators")
        computed, operators = (
            computed_by(plan.form),
            check_operators(plan.form, plan.target.settings, activations=plan.activations, kind=Kind.of(plan.target)),
        )
    with fitting_threads(plan.source):
        at_once = plan.target.settings.layers
        if fits(plan.source):
            from export.gate.resident import resident_gate as gate
        else:
            from export.gate.blockwise import blockwise_gate as gate

            at_once = 1
        found = gate(plan, written, onnx, say)
        beyond = windows_not_passed(plan.target.settings, at_once) if onnx else None
        return replace(found, graphs_computed_by=computed, operators=operators, windows_not_passed=beyond)
