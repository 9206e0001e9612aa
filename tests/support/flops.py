"""FLOPs as PyTorch counts them, of models that multiply by operators which its counter knows."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from export.cost.count import Counted
from transform.load import align, load_model
from transform.molmoe.compatibility import CACHE
from transform.plan import Plan
from transform.runtime import knobs_at_run_time


@cache
def model_of(directory: Path) -> Any:
    """A checkpoint in memory, experts one by one and attention as matrix products."""
    return align(load_model(directory, attn_implementation="eager", experts_implementation="eager"))


def counted_by_torch(act: Callable[[], object]) -> int:
    """Of all that `act` multiplies."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        act()
    return int(counter.get_total_flops())


def decoder_flops(plan: Plan, directory: Path, counted: Counted, new: int) -> tuple[int, int]:
    """(prefill, the middle step of an answer of `new` tokens), with the plan's k and blocks at run time."""
    model, settings = model_of(directory), plan.target.settings
    total = counted.tokens.positions + max(new // 2, 1)
    ids = torch.randint(2, settings.vocab - 2, (1, total))
    found = []
    with knobs_at_run_time(model, plan.keep_blocks, settings.top_k):
        out: dict[str, object] = {}

        def run(part: torch.Tensor) -> None:
            past = {CACHE: out["cache"]} if "cache" in out else {}
            out["cache"] = getattr(model(input_ids=part, use_cache=True, **past), CACHE)

        found.append(counted_by_torch(lambda: run(ids[:, : counted.tokens.positions])))
        if total - counted.tokens.positions > 1:
            run(ids[:, counted.tokens.positions : -1])
        found.append(counted_by_torch(lambda: run(ids[:, -1:])))
    return found[0], found[1]
