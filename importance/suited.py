"""Which models the engine computes right, told from their config and modules before anything runs.

The engine calls blocks one by one, between the embedding and the final norm, and does what `around.py` knows. A model
that does more than that would be scored wrong without a word, so it is refused by name. What no name tells,
`self_check.py` finds.
"""

from typing import TYPE_CHECKING

from torch import nn

from importance.around import SLIDING
from importance.calling import ScoringError
from transform.choices import find_choices, find_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

INSTEAD = (
    "Measure this model with transform.BlockMaskWrapper instead, under which it runs as it always does, or name blocks "
    "yourself: --drop-blocks."
)
_LISTS = ("layer_types", "layers_block_type")
_FULL = {"full_attention", "attention", SLIDING}  # those that slide get a mask of their own
_CHUNKS = {"chunked_attention": "attention_chunk_size"}  # kind, its size's key
# What a model multiplies between embedding and blocks, or between head and logits, in a way that the engine doesn't
# know, and the value that changes nothing.
# Multipliers inside blocks are the blocks' own, and right.
_SCALES = {
    "scale_embedding": False,
    "lm_head_multiplier": 1,
    "logit_scale": 1,
    "final_logit_softcapping": None,
}


def insist_on_suited(model: nn.Module, config: "PreTrainedConfig | None" = None) -> None:
    """Raise ScoringError for a model with chunks, recurrent blocks, scaled embeddings or logits, or experts whose
    number can't be set. `config`: the decoder's with all its blocks, where the model lacks some."""
    decoder = find_decoder(model)
    name = type(model).__name__
    config = getattr(decoder, "config", None) if config is None else config
    _refuse_kinds(config, name)
    _refuse_chunks(config, name)
    _refuse_scales(config, name)
    _refuse_turns(config, name)
    for part in ("norm", "rotary_emb"):
        if not isinstance(getattr(decoder, part, None), nn.Module):
            raise ScoringError(
                f"scoring needs a decoder with blocks, a norm and rotary_emb: {type(decoder).__name__} of {name} has "
                f"no {part}. {INSTEAD}"
            )
    _refuse_hidden_experts(decoder, name)


def _kinds(config: "PreTrainedConfig | None") -> set[str]:
    """The kinds of blocks that a config lists; empty where it lists none."""
    return {str(kind) for key in _LISTS for kind in getattr(config, key, None) or ()}


def _refuse_kinds(config: "PreTrainedConfig | None", name: str) -> None:
    unknown = sorted(_kinds(config) - _FULL - _CHUNKS.keys())
    if unknown:
        raise ScoringError(
            f"scoring needs blocks that attend to all tokens before, so that answers can branch off one prompt: {name} "
            f"has {', '.join(unknown)}. {INSTEAD}"
        )


def _refuse_chunks(config: "PreTrainedConfig | None", name: str) -> None:
    """They count where a block has them and a sequence can be longer."""
    kinds = _kinds(config)
    longest = getattr(config, "max_position_embeddings", None)
    for kind, key in _CHUNKS.items():
        size = getattr(config, key, None)
        if kind in kinds and size and (longest is None or size < longest):
            raise ScoringError(
                f"scoring gives blocks masks of the whole sequence or of its last tokens: {name} has {key} {size} and "
                f"sequences of {'any length' if longest is None else f'up to {longest} tokens'}. {INSTEAD}"
            )


def _refuse_scales(config: "PreTrainedConfig | None", name: str) -> None:
    found = {key: getattr(config, key, None) for key in _SCALES}
    wrong = [f"{key} {value}" for key, value in found.items() if value is not None and value != _SCALES[key]]
    if wrong:
        raise ScoringError(
            "scoring runs from the embedding through blocks, final norm and head, and multiplies by an "
            f"embedding_multiplier and divides by a logits_scaling alone between them: {name} has {', '.join(wrong)}. "
            f"{INSTEAD}"
        )


def _refuse_turns(config: "PreTrainedConfig | None", name: str) -> None:
    thetas = getattr(config, "layer_rope_theta", None)
    if isinstance(thetas, list | tuple) and len(set(thetas)) > 1:
        raise ScoringError(
            f"scoring turns queries and keys alike in all blocks: {name} has layer_rope_theta "
            f"{', '.join(map(str, thetas[:4]))}, … {INSTEAD}"
        )


def _refuse_hidden_experts(decoder: nn.Module, name: str) -> None:
    for index, block in enumerate(decoder.layers):
        routed = any(isinstance(getattr(module, "experts", None), nn.Module) for module in block.modules())
        if routed and not find_choices(block):
            raise ScoringError(
                f"scoring sets how many experts each block's router chooses: block {index} of {name} has experts and "
                f"no module with a top_k and one weight row per expert. {INSTEAD}"
            )
