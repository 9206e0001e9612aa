"""Rewrite the router's top-k, for all blocks or per block.

Moves no weight bytes: only the config changes. Kept router weights are not renormalised, so the checkpoint equals
the same k applied at run time. Per-block k over the blocks of *this* checkpoint: run `depth.py` first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transform.checkpoint import Checkpoint
from transform.errors import KnobError
from transform.knobs import merged_k, spelt_k
from transform.passes import Changes, Pass


@dataclass(frozen=True)
class SetTopK(Pass):
    """k: experts per token, one number for all blocks or one per block."""

    k: int | tuple[int, ...]
    name = "set_top_k"

    def requires(self, source: Checkpoint) -> None:
        """One k for each block, from 1 to its experts; several where the config can hold a list."""
        settings, architecture = source.settings, source.architecture
        top_k = self._top_k(source)
        if len(top_k) != settings.layers:
            raise KnobError(
                f"per-block k must give one value per kept block: {len(top_k)} values, {settings.layers} blocks kept. "
                f"Give {settings.layers} values, or one for all."
            )
        wrong = [value for value in top_k if not 1 <= value <= settings.experts]
        if wrong:
            raise KnobError(f"k must be from 1 to {settings.experts} (the experts of a block), got {wrong[0]}.")
        if len(set(top_k)) > 1 and not architecture.per_block_top_k:
            raise KnobError(
                f"a {architecture.model_type!r} checkpoint has one {architecture.top_k_key} for all blocks and can't "
                f"carry {spelt_k(top_k)}. Give one k for all blocks."
            )

    def run(self, source: Checkpoint) -> Checkpoint:
        """The same tensors, another config."""
        k = merged_k(self._top_k(source))
        value = k if isinstance(k, int) else list(k)
        return replace(source, config=dict(source.config) | {source.architecture.top_k_key: value})

    def changes(self, source: Checkpoint) -> Changes:
        """k."""
        return Changes(self._top_k(source), (source.architecture.top_k_key,))

    def ensures(self, target: Checkpoint) -> str | None:
        """Nothing more."""

    def _top_k(self, source: Checkpoint) -> tuple[int, ...]:
        return (self.k,) * source.settings.layers if isinstance(self.k, int) else self.k


def set_top_k(source: Checkpoint, k: int | Sequence[int]) -> Checkpoint:
    """The checkpoint with k experts per token; a sequence gives one k per block of `source`."""
    return SetTopK(k if isinstance(k, int) else tuple(k))(source)


def beyond_training(source: Checkpoint, top_k: Sequence[int], keep_blocks: Sequence[int]) -> str | None:
    """A warning where some kept block gets more experts than it was trained with, else None."""
    trained = source.settings.top_k
    above = [(i, k) for i, k in zip(keep_blocks, top_k, strict=True) if k > trained[i]]
    if not above:
        return None
    block, k = above[0]
    return (
        f"k={k} is above the trained k={trained[block]} (block {block}): it runs, but the summed router weight "
        "grows beyond anything seen in training"
    )
