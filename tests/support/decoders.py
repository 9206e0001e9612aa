"""Tiny random checkpoints of the families that have graphs, as transformers writes them: all that is trained is random.

Widths fill the blocks that weights are quantised in, and none is another one's: vocabulary 212, width 64, heads 4 of 24
(96 and 48), experts 8 of 160, shared 192 or 320, dense 128.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.zoo import randomise

BLOCKS, EXPERTS, K, VOCABULARY = 4, 8, 4, 212
WINDOW = 5  # every probe is longer
END_OF_TEXT = 2
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": BLOCKS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 24, "max_position_embeddings": 256, "initializer_range": 0.1,
    "bos_token_id": 1, "eos_token_id": END_OF_TEXT, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
NAMED = {"num_experts": EXPERTS, "num_experts_per_tok": K}
LOCAL = {"num_local_experts": EXPERTS, "num_experts_per_tok": K}
SPLIT = {"moe_intermediate_size": 160, "intermediate_size": 128}
ROUTED = {
    "n_routed_experts": EXPERTS, "num_experts_per_tok": K, "routed_scaling_factor": 1.7, "n_group": 4, "topk_group": 3,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    "truncate": False,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MULTIPLIERS = {
    "embedding_multiplier": 1.5, "residual_multiplier": 0.7, "logits_scaling": 1.3, "attention_multiplier": 0.2,
}  # fmt: skip
DENSE = ("llama", "qwen2", "qwen3")  # rows without experts
# name -> class of transformers, what its config has besides SIZES
DECODERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "qwen3_moe": (
        "Qwen3MoeForCausalLM", SPLIT | NAMED | {"mlp_only_layers": [1], "norm_topk_prob": True, "attention_bias": True}
    ),
    "mixtral": ("MixtralForCausalLM", LOCAL | {"intermediate_size": 160, "sliding_window": WINDOW}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        SPLIT | NAMED | {
            "shared_expert_intermediate_size": 192, "mlp_only_layers": [2], "use_sliding_window": True,
            "sliding_window": WINDOW, "max_window_layers": 3, "rope_parameters": LLAMA3,
        },
    ),
    "granitemoe": (
        "GraniteMoeForCausalLM", LOCAL | MULTIPLIERS | {"intermediate_size": 160, "tie_word_embeddings": True}
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        LOCAL | {"intermediate_size": 160, "sliding_window": WINDOW, "rope_parameters": YARN, "swiglu_limit": 0.3},
    ),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        SPLIT | ROUTED | {"first_k_dense_replace": 1, "use_qk_norm": True, "attention_bias": True},
    ),
    "ernie4_5_moe": (
        "Ernie4_5_MoeForCausalLM",
        SPLIT | {
            "moe_num_experts": EXPERTS, "moe_k": K, "moe_layer_start_index": 1, "tie_word_embeddings": True,
            "moe_norm_min": 0.6, "use_bias": True,
        },
    ),
    "granitemoeshared": (
        "GraniteMoeSharedForCausalLM",
        LOCAL | MULTIPLIERS | {"intermediate_size": 160, "shared_intermediate_size": 192},
    ),
    "dots1": (
        "Dots1ForCausalLM",
        SPLIT | ROUTED | {
            "n_shared_experts": 2, "first_k_dense_replace": 1, "sliding_window": WINDOW, "max_window_layers": 2,
            "attention_bias": True,
        },
    ),
    "solar_open": ("SolarOpenForCausalLM", SPLIT | ROUTED | {"n_shared_experts": 2}),
    "llama": ("LlamaForCausalLM", {"intermediate_size": 128, "rope_parameters": LLAMA3, "mlp_bias": True}),
    "qwen2": (
        "Qwen2ForCausalLM",
        {"intermediate_size": 128, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"intermediate_size": 128, "tie_word_embeddings": True}),
    "flex_olmo": ("FlexOlmoForCausalLM", NAMED | {"intermediate_size": 160, "attention_bias": True}),
}  # fmt: skip

# Families whose graphs generated, in onnxruntime-genai, the tokens that transformers generates (`test_onnx_genai.py`):
# all that have graphs. Of the forms cpu, int4 and int8; cuda is for GPUs.
GENAI = ("molmo", "olmoe", *DECODERS)


def write_decoder(
    name: str, directory: Path, dtype: torch.dtype = torch.float32, save_original_format: bool = True, **changes: Any
) -> Path:
    """Write the checkpoint of a row, as released or as transformers holds it in memory; `changes` are keys of its
    config."""
    kind_name, own = DECODERS[name]
    kind = getattr(transformers, kind_name)
    torch.manual_seed(sum(map(ord, name)))
    model = kind(kind.config_class(**(SIZES | dict(own) | changes))).eval()
    randomise(model)
    model.to(dtype).save_pretrained(directory, save_original_format=save_original_format)
    return directory
