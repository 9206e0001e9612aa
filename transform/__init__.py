"""A checkpoint becomes a smaller checkpoint, and what a static variant must equal at run time.

What Python programs use is named here (`docs/api.md`) and resolved on first use: reading and planning need no torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if os.name != "posix":
    raise ImportError(
        f"knobcast needs a POSIX system, Linux or macOS, this is {os.name}: it locks, shares and swaps files by their "
        "calls. Use WSL on Windows; variants and their graphs run anywhere."
    )

if TYPE_CHECKING:
    from transform.checkpoint import Checkpoint
    from transform.errors import KnobcastError
    from transform.knobs import Knobs
    from transform.molmoe.preprocessing import preprocess, resize_for_target_vision_tokens
    from transform.molmoe.tiling import crops_to_tiling, select_tiling, tiling_to_resolution, tokens_to_crops
    from transform.plan import Plan, make_plan
    from transform.read import read_checkpoint
    from transform.runtime import BlockMaskWrapper, knobs_at_run_time, moe_top_k, set_moe_top_k
    from transform.source import resolve

__all__ = [
    "BlockMaskWrapper",
    "Checkpoint",
    "KnobcastError",
    "Knobs",
    "Plan",
    "crops_to_tiling",
    "knobs_at_run_time",
    "make_plan",
    "moe_top_k",
    "preprocess",
    "read_checkpoint",
    "resize_for_target_vision_tokens",
    "resolve",
    "select_tiling",
    "set_moe_top_k",
    "tiling_to_resolution",
    "tokens_to_crops",
]

_HOMES = {
    "BlockMaskWrapper": "transform.runtime",
    "Checkpoint": "transform.checkpoint",
    "KnobcastError": "transform.errors",
    "Knobs": "transform.knobs",
    "Plan": "transform.plan",
    "make_plan": "transform.plan",
    "read_checkpoint": "transform.read",
    "resolve": "transform.source",
    "knobs_at_run_time": "transform.runtime",
    "moe_top_k": "transform.runtime",
    "set_moe_top_k": "transform.runtime",
    "preprocess": "transform.molmoe.preprocessing",
    "resize_for_target_vision_tokens": "transform.molmoe.preprocessing",
    "crops_to_tiling": "transform.molmoe.tiling",
    "select_tiling": "transform.molmoe.tiling",
    "tiling_to_resolution": "transform.molmoe.tiling",
    "tokens_to_crops": "transform.molmoe.tiling",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
