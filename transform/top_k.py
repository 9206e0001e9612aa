"""Rewrite the router's top-k, for all blocks or per block.

Moves no weight bytes: only the config changes. Kept router weights are not renormalised, so the checkpoint equals
the same k applied at run time. Per-block k over the blocks of *this* checkpoint: run `depth.py` first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transform.architectures import TopK
from transform.architectures.vocabulary import reachable_experts
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
        if not any(settings.experts_of):
            raise KnobError(
                f"k needs blocks with experts, and this {architecture.model_type!r} model has none, got "
                f"{spelt_k(self.k if isinstance(self.k, tuple) else (self.k,))}. Leave k out, and drop blocks instead."
            )
        top_k = self._top_k(source)
        if architecture.k is TopK.FIXED and top_k != settings.top_k:
            raise KnobError(
                f"the k of {architecture.model_type!r} models is built into their code and can't be chosen, got "
                f"{spelt_k(top_k)}. Leave k out, and drop blocks instead."
            )
        if len(top_k) != settings.layers:
            raise KnobError(
                f"per-block k must give one value per kept block: {len(top_k)} values, {settings.layers} blocks kept. "
                f"Give {settings.layers} values, or one for all."
            )
        wrong = [k for k, experts in zip(top_k, settings.experts_of, strict=True) if experts and not 1 <= k <= experts]
        if wrong:
            raise KnobError(f"k must be from 1 to {settings.experts} (the experts of a block), got {wrong[0]}.")
        most = reachable_experts(architecture.text_of(source.config), settings.experts)
        if max(top_k) > most:
            raise KnobError(
                f"k must be at most {most}, the experts of the topk_group groups that a token reaches, got "
                f"{max(top_k)}. Give a smaller k."
            )
        if len({k for k in top_k if k}) > 1 and not architecture.per_block_top_k:
            raise KnobError(
                f"a {architecture.model_type!r} checkpoint has one {architecture.top_k_key} for all blocks and can't "
                f"carry {spelt_k(top_k)}. Give one k for all blocks."
            )

    def run(self, source: Checkpoint) -> Checkpoint:
        """The same tensors, another config."""
        family, top_k = source.architecture, self._top_k(source)
        k = merged_k([value for value in top_k if value])
        value = k if isinstance(k, int) else list(top_k)
        text = dict(family.text_of(source.config)) | dict.fromkeys(family.top_k_keys(source.config), value)
        return replace(source, config=family.with_text(source.config, text))

    def changes(self, source: Checkpoint) -> Changes:
        """k."""
        family = source.architecture
        return Changes(
            self._top_k(source), (*family.top_k_keys(source.config), *((family.text,) if family.text else ()))
        )

    def ensures(self, target: Checkpoint) -> str | None:
        """Nothing more."""

    def _top_k(self, source: Checkpoint) -> tuple[int, ...]:
        experts = source.settings.experts_of
        ks = (self.k,) * len(experts) if isinstance(self.k, int) else self.k
        return tuple(k if has else 0 for k, has in zip(ks, experts, strict=True)) if len(ks) == len(experts) else ks


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
