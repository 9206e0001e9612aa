"""Which gate a variant passes: the resident one, or block by block where two models don't fit into memory."""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transform.checkpoint import Checkpoint
from transform.plan import Plan, parameters

FLOAT32 = 4


def free_memory() -> int:
    """Bytes that can be taken without swapping; where the system doesn't say, half of the memory."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def release_memory() -> None:
    """Give what was freed back to the system, with glibc: else up to 1.2 GB of a MolmoE-1B block's weights, which were
    freed piece by piece, stay with the process beside the next block's."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def fits(checkpoint: Checkpoint) -> bool:
    """Whether the model in float32 takes at most a third of the free memory, so that two are held at once."""
    return parameters(checkpoint) * FLOAT32 <= free_memory() / 3


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
    if not fits(plan.source):
        from export.blockwise import blockwise_gate

        return blockwise_gate(plan, directory, onnx, say) | tried
    from export.verify import gate

    return gate(plan, directory, onnx, say) | tried


def quiet_transformers() -> None:
    """One bar per loaded model would hide ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
