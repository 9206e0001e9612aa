"""Which gate a variant passes: the resident one, or block by block where two models don't fit into memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transform.plan import Plan, parameters

FLOAT32 = 4


def free_memory() -> int:
    """Bytes that can be taken without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def run_gate(plan: Plan, directory: Path, onnx: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Above a third of the free memory the comparison works block by block."""
    quiet_transformers()
    if parameters(plan.source) * FLOAT32 > free_memory() / 3:
        from export.blockwise import blockwise_gate

        return blockwise_gate(plan, directory, onnx, say)
    from export.verify import gate

    return gate(plan, directory, onnx, say)


def quiet_transformers() -> None:
    """One bar per loaded model would hide ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
