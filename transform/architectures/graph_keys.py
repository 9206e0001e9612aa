"""Config keys that graphs depend on, and those that change no number: one in neither list stops the graphs, by name.

What others compute wrongly in silence mostly is a key that nobody read (`clip_qkv`, `truncate`, `mscale`).
"""

from collections.abc import Collection, Mapping

from transform.architectures.graph_facts import GraphWords
from transform.architectures.values import shown
from transform.architectures.vocabulary import (
    BEFORE_EXPERTS,
    INTERVAL,
    LAST,
    ONLY_DENSE,
    OTHER_LISTS,
    PREDICTORS,
    STEP,
    TOP_K,
)

READ = (
    "tie_word_embeddings", "rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor",
    "original_max_position_embeddings", "layer_types", "sliding_window", "use_sliding_window", "max_window_layers",
    "mlp_layer_types", "moe_layers", *TOP_K, *BEFORE_EXPERTS, ONLY_DENSE, STEP, LAST, INTERVAL, *PREDICTORS,
)  # fmt: skip
ATTENTION = ("full_attention", "sliding_attention")  # of `layer_types`: what blocks may attend to
# Names, versions, training, generation; sizes and flags that tensors say by their shapes and by being there.
HARMLESS = frozenset((
    "model_type", "auto_map", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "name_or_path",
    "initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "output_router_logits",
    "router_aux_loss_coef", "router_jitter_noise", "router_z_loss_coef", "aux_loss_alpha", "seq_aux", "pretraining_tp",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    "return_dict", "output_hidden_states", "output_attentions", "id2label", "label2id", "problem_type",
    "is_encoder_decoder", "chunk_size_feed_forward", "quantization_config", "intermediate_size",
    "moe_intermediate_size", "shared_expert_intermediate_size", "n_shared_experts", "moe_num_shared_experts",
    "attention_bias", "qkv_bias", "use_bias", "mlp_bias", "use_qk_norm", "language_model_only",
))  # fmt: skip


def unread_keys(words: GraphWords, read: Collection[str], config: Mapping[str, object]) -> list[str]:
    """Keys of a decoder's config that nothing reads; `read`: those that settings are read from."""
    multipliers = vars(words.multipliers).values()
    of_words = (*words.groups, words.scale, words.least, words.alpha, words.limit, *multipliers, *words.fixed)
    known = {*READ, *HARMLESS, *OTHER_LISTS, *of_words, *words.harmless, *read}
    return sorted(key for key, value in config.items() if key not in known and not _says_nothing(key, value))


def unfit(words: GraphWords, config: Mapping[str, object]) -> str | None:
    """The first key whose value no graph computes."""
    for key, only in words.fixed.items():
        if (value := config.get(key, only)) != only:
            return f"{key} must be {shown(only)}, it is {shown(value)}"
    kinds = config.get("layer_types")
    others = sorted(set(map(str, kinds)) - set(ATTENTION)) if isinstance(kinds, list) else []
    return f"layer_types must be {' or '.join(ATTENTION)}, there is {others[0]}" if others else None


def _says_nothing(key: str, value: object) -> bool:
    return value is None or key.startswith("_attn_") or key.endswith("_implementation")
