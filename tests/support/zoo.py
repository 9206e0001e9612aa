"""Tiny random checkpoints of every family that has a data file, as transformers' own `save_pretrained` writes them.

Everything is random that released checkpoints have trained: norms, biases, correction biases, sinks. Sizes collide
nowhere: vocabulary, width, heads x head width, experts, their width, dense and shared widths all differ.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import load_file, save_file

BLOCKS = 6
CORE = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "glm4_moe", "granitemoe", "ernie4_5_moe", "qwen3_vl_moe")
EXPERTS, K = 8, 4
KS = (None, K // 2, 1)
SIZES = {
    "vocab_size": 212, "hidden_size": 48, "num_hidden_layers": BLOCKS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.12,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
TIED = {"tie_word_embeddings": True}
HEADS = {"head_dim": 20}
DENSE = {"intermediate_size": 60}
THIN = {"intermediate_size": 28}  # of an expert
EXPERT = {"moe_intermediate_size": 28, **DENSE}
LOCAL = {"num_local_experts": EXPERTS, "num_experts_per_tok": K}
NAMED = {"num_experts": EXPERTS, "num_experts_per_tok": K}
ROUTED = {"n_routed_experts": EXPERTS, "num_experts_per_tok": K, "routed_scaling_factor": 1.7}
GROUPS = {"n_group": 4, "topk_group": 2}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 20}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12,
}  # fmt: skip
MULTIPLIERS = {
    "embedding_multiplier": 1.5, "residual_multiplier": 0.7, "logits_scaling": 1.3, "attention_multiplier": 0.2,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 16}
INDEXED = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 64}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
}  # fmt: skip
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 3, 3], "mrope_interleaved": True}
EYES = {
    "depth": 4, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "out_hidden_size": 48, "num_position_embeddings": 16,
}  # fmt: skip
PIXELS = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip


class Animal(NamedTuple):
    """A checkpoint to be: its class in transformers and the arguments of its config; what the family forbids."""

    kind: str
    config: Mapping[str, Any]
    boundary: int | None = None  # the last block of another make than the one behind it, which a case drops
    original: bool = True  # as the released layout; False: as transformers holds it in memory
    rows: int = 0  # MTP layers that are written behind the blocks
    never: tuple[str, ...] = ()  # cases of blocks that the family forbids
    fixed: bool = False  # k can't be chosen

    def refused(self, cases: Iterable[str], ks: Iterable[int | None]) -> set[tuple[str, int | None]]:
        """(case, k) that the family refuses."""
        return {(case, k) for case in cases for k in ks if case in self.never or (self.fixed and k is not None)}


def _text(**given: Any) -> dict[str, Any]:
    return {**SIZES, **given}


GEMMA4_TOWER: dict[str, Any] = {
    "vision_config": {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
                      "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 64},
    "audio_config": None, "image_token_id": 200, "video_token_id": 201, "boi_token_id": 202, "eoi_token_id": 203,
    "boa_token_id": 204, "eoa_token_index": 205, "audio_token_id": 206,
}  # fmt: skip
ZOO: Mapping[str, Animal] = {
    "flex_olmo": Animal("FlexOlmoForCausalLM", _text(**THIN, **NAMED)),
    "mixtral": Animal("MixtralForCausalLM", _text(**THIN, **LOCAL, **HEADS, sliding_window=9)),
    "mixtral-fused": Animal("MixtralForCausalLM", _text(**THIN, **LOCAL, **HEADS), original=False),
    "qwen2_moe": Animal(
        "Qwen2MoeForCausalLM",
        _text(**EXPERT, **NAMED, shared_expert_intermediate_size=36, mlp_only_layers=[1, 4], use_sliding_window=True,
              sliding_window=7, max_window_layers=4),
        boundary=1,
    ),
    "qwen2_moe-fused": Animal(
        "Qwen2MoeForCausalLM",
        _text(**EXPERT, **NAMED, shared_expert_intermediate_size=36, mlp_only_layers=[1, 4], use_sliding_window=True,
              sliding_window=7, max_window_layers=4),
        boundary=1, original=False),
    "qwen3_moe": Animal("Qwen3MoeForCausalLM", _text(**EXPERT, **NAMED, **HEADS, mlp_only_layers=[0, 3]), boundary=3),
    "qwen3_moe-step": Animal(
        "Qwen3MoeForCausalLM", _text(**EXPERT, **NAMED, **HEADS, decoder_sparse_step=2), boundary=2
    ),
    "qwen3_moe-fused": Animal("Qwen3MoeForCausalLM", _text(**EXPERT, **NAMED, **HEADS), original=False),
    "qwen3_next": Animal(
        "Qwen3NextForCausalLM",
        _text(**EXPERT, **NAMED, **HEADS, **LINEAR, shared_expert_intermediate_size=36, mlp_only_layers=[2]),
        boundary=2, never=("middle",),
    ),
    "qwen3_next-fused": Animal(
        "Qwen3NextForCausalLM",
        _text(**EXPERT, **NAMED, **HEADS, **LINEAR, shared_expert_intermediate_size=36, mlp_only_layers=[2]),
        boundary=2, never=("middle",), original=False),
    "qwen3_5_moe": Animal(
        "Qwen3_5MoeForConditionalGeneration",
        {"text_config": _text(**EXPERT, **NAMED, **HEADS, **LINEAR, shared_expert_intermediate_size=36,
                              rope_parameters=SECTIONS | {"mrope_section": [1, 1, 0]}),
         "vision_config": EYES, "image_token_id": 200, "video_token_id": 201, "vision_start_token_id": 202,
         "vision_end_token_id": 203},
        never=("middle",),
    ),
    "qwen3_5_moe-fused": Animal(
        "Qwen3_5MoeForConditionalGeneration",
        {"text_config": _text(**EXPERT, **NAMED, **HEADS, **LINEAR, shared_expert_intermediate_size=36,
                              rope_parameters=SECTIONS | {"mrope_section": [1, 1, 0]}),
         "vision_config": EYES, "image_token_id": 200, "video_token_id": 201, "vision_start_token_id": 202,
         "vision_end_token_id": 203},
        never=("middle",), original=False),
    "qwen3_vl_moe": Animal(
        "Qwen3VLMoeForConditionalGeneration",
        {"text_config": _text(**EXPERT, **NAMED, **HEADS, mlp_only_layers=[3], rope_parameters=SECTIONS),
         "vision_config": EYES | {"deepstack_visual_indexes": [1, 2]}, "image_token_id": 200, "video_token_id": 201,
         "vision_start_token_id": 202, "vision_end_token_id": 203},
        boundary=3, never=("first",),
    ),
    "gpt_oss": Animal(
        "GptOssForCausalLM", _text(**THIN, **LOCAL, **HEADS, sliding_window=5, rope_parameters=YARN), boundary=2
    ),
    "gpt_oss-fused": Animal(
        "GptOssForCausalLM", _text(**THIN, **LOCAL, **HEADS, sliding_window=5, rope_parameters=YARN), boundary=2,
        original=False),
    "glm4_moe": Animal(
        "Glm4MoeForCausalLM",
        _text(**EXPERT, **ROUTED, **GROUPS, **HEADS, first_k_dense_replace=2, use_qk_norm=True, attention_bias=True),
        boundary=1,
    ),
    "glm4_moe-fused": Animal(
        "Glm4MoeForCausalLM",
        _text(**EXPERT, **ROUTED, **GROUPS, **HEADS, first_k_dense_replace=2, use_qk_norm=True, attention_bias=True),
        boundary=1, original=False),
    "glm4_moe_lite": Animal(
        "Glm4MoeLiteForCausalLM",
        _text(**EXPERT, **ROUTED, **GROUPS, **LATENT) | {"num_key_value_heads": 4}, boundary=0,
    ),
    "glm4v_moe": Animal(
        "Glm4vMoeForConditionalGeneration",
        {"text_config": _text(**EXPERT, **ROUTED, **GROUPS, **HEADS, first_k_dense_replace=2,
                              rope_parameters=SECTIONS | {"mrope_section": [2, 2, 1], "partial_rotary_factor": 0.5}),
         "vision_config": {key: value for key, value in EYES.items() if key != "num_position_embeddings"}
         | {"image_size": 16}, "image_token_id": 200, "video_token_id": 201, "image_start_token_id": 202,
         "image_end_token_id": 203, "video_start_token_id": 204, "video_end_token_id": 205},
        boundary=1,
    ),
    "deepseek_v2": Animal(
        "DeepseekV2ForCausalLM",
        _text(**EXPERT, **ROUTED, **GROUPS, **LATENT, topk_method="group_limited_greedy", first_k_dense_replace=2,
              n_shared_experts=2) | {"num_key_value_heads": 4},
        boundary=1,
    ),
    "deepseek_v3": Animal(
        "DeepseekV3ForCausalLM",
        _text(**EXPERT, **ROUTED, **GROUPS, **LATENT, first_k_dense_replace=2, rope_parameters=YARN | {"mscale": 1.0})
        | {"num_key_value_heads": 4},
        boundary=1, rows=1,
    ),
    "deepseek_v3-fused": Animal(
        "DeepseekV3ForCausalLM",
        _text(**EXPERT, **ROUTED, **GROUPS, **LATENT, first_k_dense_replace=2, rope_parameters=YARN | {"mscale": 1.0})
        | {"num_key_value_heads": 4},
        boundary=1, rows=1, original=False),
    "dots1": Animal(
        "Dots1ForCausalLM",
        _text(**EXPERT, **ROUTED, **GROUPS, **HEADS, n_shared_experts=2, first_k_dense_replace=2, sliding_window=7,
              max_window_layers=3),
        boundary=1,
    ),
    "solar_open": Animal("SolarOpenForCausalLM", _text(moe_intermediate_size=28, **ROUTED, **GROUPS, **HEADS)),
    "exaone_moe": Animal(
        "ExaoneMoeForCausalLM",
        _text(**EXPERT, **NAMED, **GROUPS, **HEADS, first_k_dense_replace=1, sliding_window=6), boundary=0,
    ),
    "minimax_m2": Animal("MiniMaxM2ForCausalLM", _text(**THIN, **LOCAL, **HEADS, rotary_dim=10)),
    "minimax_m2-fused": Animal("MiniMaxM2ForCausalLM", _text(**THIN, **LOCAL, **HEADS, rotary_dim=10), original=False),
    "minimax": Animal("MiniMaxForCausalLM", _text(**THIN, **LOCAL, **HEADS, block_size=16), boundary=2),
    "granitemoe": Animal("GraniteMoeForCausalLM", _text(**THIN, **LOCAL, **MULTIPLIERS) | TIED),
    "granitemoeshared": Animal(
        "GraniteMoeSharedForCausalLM", _text(**THIN, **LOCAL, **MULTIPLIERS, shared_intermediate_size=36)
    ),
    "granitemoe_swa": Animal(
        "GraniteMoeSWAForCausalLM",
        _text(**THIN, **LOCAL, **MULTIPLIERS, sliding_window=6, layer_rope_theta=[1e4, 0, 2e4, 1e4, 0, 3e4]),
        boundary=0,
    ),
    "granitemoehybrid": Animal(
        "GraniteMoeHybridForCausalLM",
        _text(**THIN, **LOCAL, **MULTIPLIERS, **MAMBA, mamba_d_head=12, shared_intermediate_size=36,
              position_embedding_type="rope",
              layer_types=["mamba", "mamba", "attention", "mamba", "mamba", "attention"]),
        boundary=2,
    ),
    "ernie4_5_moe": Animal(
        "Ernie4_5_MoeForCausalLM",
        _text(**EXPERT, **HEADS, moe_num_experts=EXPERTS, moe_k=K, moe_layer_start_index=2) | TIED,
        boundary=1,
    ),
    "ernie4_5_moe-fused": Animal(
        "Ernie4_5_MoeForCausalLM",
        _text(**EXPERT, **HEADS, moe_num_experts=EXPERTS, moe_k=K, moe_layer_start_index=2) | TIED,
        boundary=1, original=False),
    "ernie4_5_vl_moe": Animal(
        "Ernie4_5_VLMoeForConditionalGeneration",
        {"text_config": _text(**DENSE, **HEADS, moe_intermediate_size=[28, 20], moe_num_experts=EXPERTS, moe_k=K,
                              rope_parameters=ROPE | {"mrope_section": [3, 3, 4]}) | TIED,
         "vision_config": {key: value for key, value in EYES.items() if key not in (
             "num_position_embeddings", "temporal_patch_size", "out_hidden_size")},
         "image_token_id": 200, "video_token_id": 201, "image_start_token_id": 202, "image_end_token_id": 203,
         "video_start_token_id": 204, "video_end_token_id": 205},
        boundary=0,
    ),
    "lfm2_moe": Animal(
        "Lfm2MoeForCausalLM",
        _text(**EXPERT, **NAMED, num_dense_layers=2, routed_scaling_factor=1.7, layer_types=[
            "conv", "conv", "full_attention", "conv", "conv", "full_attention"]) | TIED,
        boundary=1,
    ),
    "phimoe": Animal("PhimoeForCausalLM", _text(**THIN, **LOCAL, attention_bias=True, lm_head_bias=True), fixed=True),
    "hunyuan_v1_moe": Animal(
        "HunYuanMoEV1ForCausalLM", _text(**THIN, **HEADS, num_experts=EXPERTS, moe_topk=K, num_shared_expert=2)
    ),
    "hunyuan_v1_moe-lists": Animal(
        "HunYuanMoEV1ForCausalLM", _text(**THIN, **HEADS, num_experts=EXPERTS, moe_topk=[4, 3, 2, 4, 3, 2])
    ),
    "aria": Animal(
        "AriaForConditionalGeneration",
        {"text_config": _text(**THIN, **HEADS, moe_num_experts=EXPERTS, moe_topk=K),
         "vision_config": PIXELS | {"model_type": "idefics3_vision"}, "image_token_index": 200,
         "projector_patch_to_query_dict": {16: 4}},
    ),
    "llama4_text": Animal(
        "Llama4ForCausalLM",
        _text(**THIN, **LOCAL, **HEADS, intermediate_size_mlp=60, interleave_moe_layer_step=2, attention_chunk_size=8,
              no_rope_layer_interval=3),
        boundary=2,
    ),
    "afmoe": Animal(
        "AfmoeForCausalLM",
        _text(**EXPERT, **NAMED, **HEADS, num_dense_layers=2, sliding_window=6, global_attn_every_n_layers=3,
              route_scale=1.7),
        boundary=1,
    ),
    "mimo_v2_flash": Animal(
        "MiMoV2FlashForCausalLM", _text(**EXPERT, **ROUTED, **HEADS, v_head_dim=12, sliding_window=6), boundary=0
    ),
    "cohere2_moe": Animal(
        "Cohere2MoeForCausalLM",
        _text(**THIN, **NAMED, **HEADS, sliding_window=6, first_k_dense_replace=1, prefix_dense_intermediate_size=60,
              num_shared_experts=1) | TIED,
        boundary=0,
    ),
    "nemotron_h": Animal(
        "NemotronHForCausalLM",
        _text(**EXPERT, **ROUTED, **HEADS, moe_shared_expert_intermediate_size=36, mamba_num_heads=4, mamba_head_dim=12,
              ssm_state_size=8, n_groups=2, chunk_size=16, mamba_n_groups=2,
              layers_block_type=["linear_attention", "moe", "full_attention", "moe", "mlp", "moe"]),
        boundary=1,
    ),
    "gemma4": Animal(
        "Gemma4ForConditionalGeneration",
        {"text_config": _text(**EXPERT, **HEADS, num_experts=EXPERTS, top_k_experts=K, enable_moe_block=True,
                              global_head_dim=24, hidden_size_per_layer_input=0, sliding_window=6,
                              layer_types=["sliding_attention", "full_attention", "sliding_attention",
                                           "full_attention", "sliding_attention", "full_attention"])
         | TIED,
         **GEMMA4_TOWER},
        boundary=1,
    ),
    "gemma4-shared": Animal(
        "Gemma4ForConditionalGeneration",
        {"text_config": _text(**EXPERT, **HEADS, num_experts=EXPERTS, top_k_experts=K, enable_moe_block=True,
                              global_head_dim=24, hidden_size_per_layer_input=8, vocab_size_per_layer_input=212,
                              sliding_window=6, num_kv_shared_layers=2,
                              layer_types=["sliding_attention", "full_attention", "sliding_attention",
                                           "full_attention", "sliding_attention", "full_attention"])
         | TIED,
         **GEMMA4_TOWER},
        boundary=1, never=("first", "middle", "last two", "boundary")),
    "jamba": Animal(
        "JambaForCausalLM",
        _text(**THIN, **NAMED, attn_layer_period=3, attn_layer_offset=1, use_mamba_kernels=False, mamba_d_state=8),
        boundary=1, never=("boundary",),
    ),
    "molmo2": Animal(
        "Molmo2ForConditionalGeneration",
        {"text_config": _text(**DENSE, **HEADS, rope_scaling_layers=[0, 2, 3], additional_vocab_size=12,
                              rope_parameters=YARN),
         "vision_config": {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2,
                           "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "image_size": [16, 16]},
         "adapter_config": {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
                            "intermediate_size": 40, "text_hidden_size": 48, "vision_feature_layer": [2, 1]},
         "image_patch_id": 200, "image_start_token_id": 201, "image_end_token_id": 202,
         "low_res_image_start_token_id": 203, "frame_start_token_id": 204, "frame_end_token_id": 205},
        boundary=0, fixed=True,
    ),
    "kimi_k25": Animal(
        "Kimi_K25ForConditionalGeneration",
        {"text_config": _text(**EXPERT, **ROUTED, **GROUPS, **LATENT, first_k_dense_replace=2)
         | {"num_key_value_heads": 4, "model_type": "deepseek_v3"},
         "vision_config": {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
                           "patch_size": 4, "pos_emb_height": 4, "pos_emb_width": 4, "pos_emb_time": 2},
         "projection_hidden_size": 32, "tie_word_embeddings": False, "image_token_id": 200, "video_token_id": 201,
         "vision_start_token_id": 202, "vision_end_token_id": 203},
        boundary=1,
    ),
    "hy_v3": Animal("HYV3ForCausalLM", _text(**EXPERT, **NAMED, **HEADS, num_shared_experts=1), boundary=0),
    "laguna": Animal(
        "LagunaForCausalLM",
        _text(**EXPERT, **NAMED, **HEADS, shared_expert_intermediate_size=36, sliding_window=6,
              num_attention_heads_per_layer=[4, 2, 4, 2, 4, 2],
              layer_types=["sliding_attention", "full_attention"] * 3),
        boundary=0,
    ),
    "mellum": Animal(
        "MellumForCausalLM",
        _text(**EXPERT, **NAMED, **HEADS, sliding_window=6, layer_types=["sliding_attention", "full_attention"] * 3,
              mlp_layer_types=["dense", "sparse", "dense", "sparse", "sparse", "sparse"]),
        boundary=2,
    ),
    "kolibri1": Animal(
        "Kolibri1ForCausalLM",
        _text(moe_intermediate_size=28, **NAMED, **HEADS, shared_expert_intermediate_size=36, sliding_window=6),
        boundary=4,
    ),
    "flint": Animal(
        "FlintForCausalLM",
        _text(**EXPERT, **NAMED, **HEADS, shared_expert_intermediate_size=36, sliding_window=6, mlp_only_layers=[0, 1]),
        boundary=1,
    ),
    "deepseek_v32": Animal(
        "DeepseekV32ForCausalLM",
        _text(**EXPERT, **ROUTED, **GROUPS, **LATENT, first_k_dense_replace=2, **INDEXED) | {"num_key_value_heads": 4},
        boundary=1,
    ),
    "axk1": Animal(
        "AXK1ForCausalLM", _text(**EXPERT, **ROUTED, **GROUPS, **LATENT) | {"num_key_value_heads": 4}, boundary=0
    ),
    "axk2": Animal(
        "AXK2ForCausalLM", _text(**EXPERT, **ROUTED, **GROUPS, **LATENT, **INDEXED) | {"num_key_value_heads": 4},
        boundary=0,
    ),
    "kimi_linear": Animal(
        "KimiLinearForCausalLM",
        _text(**EXPERT, **LOCAL, **GROUPS, **LATENT, linear_head_dim=8, linear_num_heads=2)
        | {"num_key_value_heads": 4},
        boundary=0, never=("last two",),
    ),
    "bailing_hybrid": Animal(
        "BailingHybridForCausalLM",
        _text(**EXPERT, **LOCAL, **GROUPS, **LATENT, **HEADS, first_k_dense_replace=2) | {"num_key_value_heads": 4},
        boundary=1, never=("last two",),
    ),
    "qwen3_5_moe_text": Animal(
        "Qwen3_5MoeForCausalLM",
        _text(moe_intermediate_size=28, **NAMED, **HEADS, **LINEAR, shared_expert_intermediate_size=36),
        never=("middle",),
    ),
    "gemma4_text": Animal(
        "Gemma4ForCausalLM",
        _text(**EXPERT, **HEADS, num_experts=EXPERTS, top_k_experts=K, enable_moe_block=True, global_head_dim=24,
              hidden_size_per_layer_input=0, sliding_window=6, layer_types=["sliding_attention", "full_attention"] * 3)
        | TIED,
        boundary=1,
    ),
    "aria_text": Animal("AriaTextForCausalLM", _text(**THIN, **HEADS, moe_num_experts=EXPERTS, moe_topk=K)),
    "lara_mini": Animal(
        "LaraMiniForCausalLM",
        _text(moe_intermediate_size=28, **NAMED, **HEADS, **LINEAR, shared_expert_intermediate_size=36,
              sliding_window=6),
        boundary=3,
    ),
    "mistral4": Animal(
        "Mistral4ForCausalLM",
        _text(**EXPERT, **ROUTED, **GROUPS, **LATENT, first_k_dense_replace=2) | {"num_key_value_heads": 4},
        boundary=1,
    ),
    "olmoe": Animal("OlmoeForCausalLM", _text(**THIN, **NAMED, clip_qkv=0.9, norm_topk_prob=True)),
    "llama": Animal("LlamaForCausalLM", _text(**DENSE, **HEADS), fixed=True),
    "qwen2": Animal(
        "Qwen2ForCausalLM", _text(**DENSE, use_sliding_window=True, sliding_window=7, max_window_layers=3), boundary=2,
        fixed=True,
    ),
    "qwen3": Animal("Qwen3ForCausalLM", _text(**DENSE, **HEADS) | TIED, fixed=True),
}  # fmt: skip


def cases(boundary: int | None, blocks: int = BLOCKS) -> dict[str, tuple[int, ...]]:
    """Cases of dropped blocks -> the blocks that stay."""
    dropped = {"none": (), "first": (0,), "middle": (blocks // 2,), "last two": (blocks - 2, blocks - 1)}
    dropped |= {} if boundary is None else {"boundary": (boundary,)}
    return {case: tuple(i for i in range(blocks) if i not in out) for case, out in dropped.items()}


def make(name: str, directory: Path) -> Path:
    """Write the checkpoint of a row; returns the directory."""
    return make_sized(name, directory)


def make_sized(name: str, directory: Path, **changes: object) -> Path:
    """The same with other arguments of the config of a text model."""
    animal = ZOO[name]
    kind = getattr(transformers, animal.kind)
    torch.manual_seed(sum(map(ord, name)))
    model = kind(kind.config_class(**{**animal.config, **changes})).eval()
    randomise(model)
    model.save_pretrained(directory, save_original_format=animal.original, max_shard_size="200KB")
    if animal.rows:
        _add_predictors(directory, model.config.num_hidden_layers, animal.rows)
    return directory


def _add_predictors(directory: Path, layers: int, rows: int) -> None:
    """Copies of the last block's tensors behind the blocks, as released checkpoints have what predicts further."""
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    prefix = f"model.layers.{layers - 1}."
    copies: dict[str, torch.Tensor] = {}
    for name, file in index["weight_map"].items():
        if name.startswith(prefix):
            tensor = load_file(directory / file)[name]
            copies |= {f"model.layers.{layers + row}.{name.removeprefix(prefix)}": tensor for row in range(rows)}
    copies["mtp.fc.weight"] = torch.ones(2, 3)
    save_file(copies, directory / "model-mtp.safetensors", {"format": "pt"})
    index["weight_map"] |= dict.fromkeys(copies, "model-mtp.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """What initialisation leaves at 0 or 1: norms, biases, correction biases, sinks, scales."""
    generator = torch.Generator().manual_seed(1)
    state = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if _is_learned(n)}}
    for value in state.values():
        if value.numel() > 1 and float(value.float().std()) == 0 and value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(value + 0.2 * noise)


def _is_learned(buffer: str) -> bool:
    return any(word in buffer for word in ("bias", "correction", "layer_scalar"))
