"""Rewrite the router's top-k, for all blocks or per block.

Moves no weight bytes: only the config changes. Kept router weights are not renormalised, so the checkpoint equals
the same k applied at run time. Per-block k over the blocks of *this* checkpoint: run `depth.py` first.
"""

from collections.abc import Sequence
from dataclasses import replace

from transform.checkpoint import Checkpoint
from transform.errors import KnobError
from transform.knobs import merged_k, spelt_k


def set_top_k(source: Checkpoint, k: int | Sequence[int]) -> Checkpoint:
    """The checkpoint with k experts per token; a sequence gives one k per block of `source`."""
    settings, architecture = source.settings, source.architecture
    per_block = (k,) * settings.layers if isinstance(k, int) else tuple(k)
    if len(per_block) != settings.layers:
        raise KnobError(
            f"per-block k must give one value per kept block: {len(per_block)} values, {settings.layers} blocks kept. "
            f"Give {settings.layers} values, or one for all."
        )
    wrong = [value for value in per_block if not 1 <= value <= settings.experts]
    if wrong:
        raise KnobError(f"k must be from 1 to {settings.experts} (the experts of a block), got {wrong[0]}.")
    merged = merged_k(per_block)
    if not isinstance(merged, int) and not architecture.per_block_top_k:
        raise KnobError(
            f"a {architecture.model_type!r} checkpoint has one {architecture.top_k_key} for all blocks and can't carry "
            f"{spelt_k(per_block)}. Give one k for all blocks."
        )
    value = merged if isinstance(merged, int) else list(merged)
    return replace(source, config=dict(source.config) | {architecture.top_k_key: value})


def beyond_training(source: Checkpoint, k: Sequence[int], keep: Sequence[int]) -> str | None:
    """A warning where some kept block gets more experts than it was trained with, else None."""
    trained = source.settings.top_k
    above = [(i, value) for i, value in zip(keep, k, strict=True) if value > trained[i]]
    if not above:
        return None
    block, value = above[0]
    return (
        f"k={value} is above the trained k={trained[block]} (block {block}): it runs, but the summed router weight "
        "grows beyond anything seen in training"
    )
