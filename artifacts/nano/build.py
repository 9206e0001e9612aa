"""The embedded default model's configuration, and the files that a directory of it holds."""

import json
from pathlib import Path
from typing import Any

from artifacts.nano import tokenizer, weights
from transform.molmoe import MolmoEForConditionalGeneration

TARGET = Path(__file__).parents[1] / "molmoe-nano"

# The released layout with small numbers. Values that are the same in the release are what the model relies on.
CONFIG: dict[str, Any] = {
    "activation_type": "swiglu",
    "additional_vocab_size": 128,
    "alibi": False,
    "alibi_bias_max": 8.0,
    "always_start_with_space": True,
    "architectures": ["OLMoForCausalLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": True,
    "attention_layer_norm_with_affine": True,
    "attention_type": "sdpa",
    "attn_logit_softcapping": None,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "moe",
    "clip_qkv": None,
    "crop_mode": "overlap-and-resize-c2",
    "d_model": 64,
    "default_inference_len": 65,
    "do_random_scale": False,
    "embedding_dropout": 0.0,
    "embedding_size": tokenizer.VOCAB + 24,
    "final_logit_softcapping": None,
    "fix_image_input_idx": 2,
    "float32_attention": True,
    "gin_bindings": None,
    "head_dim": None,
    "image_feature_dropout": 0.0,
    "image_padding_embed": "pad_and_partial_pad",
    "image_pooling_2d": "attention-meanq",
    "image_pooling_h": 2,
    "image_pooling_w": 2,
    "image_projector": "mlp",
    "include_bias": False,
    "init_cutoff_factor": 3.0,
    "init_device": "cpu",
    "init_fn": "normal",
    "init_std": 0.02,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "llm_load_path": None,
    "loss_token_weighting": "root_subsegments",
    "low_cpu_fsdp": True,
    "max_crops": 12,
    "max_position_embeddings": 32768,
    "max_sequence_length": 4096,
    "message_formatting": "role",
    "mlp_hidden_size": 64,  # twice the width of an expert, and of the projector
    "mlp_ratio": 1,
    "model_type": "molmo",
    "moe_capacity_factor": 1.25,
    "moe_dropless": True,
    "moe_interleave": False,
    "moe_lbl_in_fp32": False,
    "moe_log_expert_assignment": False,
    "moe_loss_weight": 0.0,
    "moe_mlp_impl": "sparse",
    "moe_num_experts": 64,
    "moe_shared_expert": False,
    "moe_top_k": 8,
    "moe_zloss_weight": 0.0,
    "multi_query_attention": None,
    "n_heads": 4,
    "n_kv_heads": None,
    "n_layers": 16,
    "new_embedding_init_range": 0.02,
    "norm_after": False,
    "normalize_input_embeds": False,
    "overlap_margins": [4, 4],
    "pad_to": None,
    "pad_token_id": 1,
    "pad_tokenizer": False,
    "precision": "amp_bf16",
    "prompt_override": None,
    "prompt_type": "uber_model",
    "qkv_bias": False,
    "query_pre_attn_scalar": 224,
    "residual_dropout": 0.1,
    "response_attention_dropout": 0.0,
    "response_residual_dropout": 0.0,
    "rope": True,
    "rope_full_precision": True,
    "rope_impl": "llama",
    "rope_theta": 10000.0,
    "scale_logits": False,
    "system_prompt_kind": "demo_or_style",
    "transformers_version": "4.45.0.dev0",
    "unconditioned": False,
    "use_cache": True,
    "use_cls_feature": False,
    "use_col_tokens": True,
    "use_position_ids": True,
    "vision_backbone": {
        "attention_dropout": 0.0,
        "fsdp_wrap": False,
        "image_default_input_size": [336, 336],
        "image_dropout_rate": 0.0,
        "image_emb_dim": 96,
        "image_head_dim": 32,
        "image_mlp_activations": "quick_gelu",
        "image_mlp_dim": 384,
        "image_model_type": "openai",
        "image_norm_eps": 1e-05,
        "image_num_heads": 3,
        "image_num_key_value_heads": 3,
        "image_num_layers": 4,
        "image_num_pos": 577,
        "image_patch_size": 14,
        "image_pos_patch_size": 14,
        "initializer_range": 0.02,
        "residual_dropout": 0.0,
        "resize_mode": "default",
    },
    "vit_layers": [-2, -3],
    "vit_load_path": None,
    "vocab_size": tokenizer.VOCAB,
    "weight_tying": False,
}

GENERATION = {"eos_token_id": tokenizer.VOCAB - 1, "pad_token_id": 1}

PREPROCESSOR = {
    "base_image_input_size": [336, 336],
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_padding_mask": True,
    "image_patch_size": 14,
    "image_processor_type": "MolmoImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_token_length_h": 12,
    "image_token_length_w": 12,
    "max_crops": 12,
    "overlap_margins": [4, 4],
    "processor_class": "MolmoProcessor",
}


def build(directory: Path, model: MolmoEForConditionalGeneration) -> None:
    """Write configuration, tokenizer and weights; scores.json and the card are measured, and written by others."""
    directory.mkdir(parents=True, exist_ok=True)
    side_files(directory)
    weights.write(model, directory)


def side_files(directory: Path) -> None:
    """Everything that isn't trained."""
    for name, content in (
        ("config.json", CONFIG),
        ("generation_config.json", GENERATION),
        ("preprocessor_config.json", PREPROCESSOR),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.write(directory)
