"""The configuration of a MolmoE checkpoint, with the released file's own keys.

Every key of a source's config.json is kept and written back, so that whatever loads the source also loads a variant.
It isn't a transformers composite config: the parts' configs are derived on demand, and never stored.
This file travels with each variant.
"""

from typing import Any

from transformers import CLIPVisionConfig, OlmoeConfig, PreTrainedConfig

# What the modelling code computes; another value would load without a complaint and give wrong numbers.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "block_type": ("moe",),
    "moe_interleave": (False,),
    "moe_shared_expert": (False,),
    "clip_qkv": (None,),
    "norm_after": (False,),
    "weight_tying": (False,),
    "alibi": (False,),
    "rope": (True,),
    "rope_impl": ("llama",),
    "layer_norm_type": ("rms",),
    "activation_type": ("swiglu",),
    "include_bias": (False,),
    "qkv_bias": (False,),
    "scale_logits": (False,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "normalize_input_embeds": (False,),
    "use_cls_feature": (False,),
    "image_padding_embed": ("pad_and_partial_pad",),
    "image_pooling_2d": ("attention-meanq",),
    "image_projector": ("mlp",),
}
_VISION: dict[str, Any] = {
    "image_default_input_size": [336, 336],
    "image_emb_dim": 1024,
    "image_head_dim": 64,
    "image_mlp_activations": "quick_gelu",
    "image_mlp_dim": 4096,
    "image_norm_eps": 1e-5,
    "image_num_heads": 16,
    "image_num_layers": 23,
    "image_num_pos": 577,
    "image_patch_size": 14,
}


class MolmoEConfig(PreTrainedConfig):
    """MolmoE's settings; the defaults are the released model's. `moe_top_k` is one number or one per block."""

    model_type = "molmo"
    keys_to_ignore_at_inference = ("cache", "past_key_values")
    # transformers' generation code and caches ask for these names
    attribute_map = {  # noqa: RUF012 - a plain dict, as in every transformers config
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_experts": "moe_num_experts",
    }

    d_model: int = 2048
    n_layers: int = 16
    n_heads: int = 16
    n_kv_heads: int | None = None
    vocab_size: int = 50280
    embedding_size: int | None = 50304
    additional_vocab_size: int | None = 128
    mlp_hidden_size: int | None = None
    mlp_ratio: int = 1
    moe_num_experts: int = 64
    moe_top_k: int | list[int] = 8
    layer_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int | None = 32768
    max_sequence_length: int = 4096
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    block_type: str = "moe"
    image_pooling_h: int = 2
    image_pooling_w: int = 2
    vit_layers: list[int] | tuple[int, ...] = (-2, -9)
    vision_backbone: dict[str, Any] | None = None
    pad_token_id: int | None = 1
    use_cache: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.vision_backbone is None:
            self.vision_backbone = dict(_VISION)
        for key, allowed in _REQUIRED.items():
            value = getattr(self, key, allowed[0])
            if value not in allowed:
                raise ValueError(
                    f"config.json: {key} must be {allowed[0]!r}, got {value!r}; nothing else was verified. "
                    "Use a MolmoE checkpoint as released."
                )
        if self.n_kv_heads not in (None, self.n_heads):
            raise ValueError(
                f"config.json: n_kv_heads must be null or n_heads ({self.n_heads}), got {self.n_kv_heads}: the key "
                "norm spans the full width. Use a MolmoE checkpoint as released."
            )
        ks = self.top_k_per_block
        if len(ks) != self.n_layers or any(not 1 <= k <= self.moe_num_experts for k in ks):
            raise ValueError(
                f"config.json: moe_top_k must be one number or {self.n_layers} numbers (one per block) from 1 to "
                f"{self.moe_num_experts} (the experts), got {self.moe_top_k!r}. Correct config.json."
            )

    @property
    def top_k_per_block(self) -> tuple[int, ...]:
        """How many experts each block gives a token."""
        return (self.moe_top_k,) * self.n_layers if isinstance(self.moe_top_k, int) else tuple(self.moe_top_k)

    @property
    def embedding_rows(self) -> int:
        """Rows of the first embedding table, and of the output head."""
        return self.embedding_size or self.vocab_size

    @property
    def mlp_width(self) -> int:
        """Twice the width of an expert and of the image projector, which share this setting."""
        return self.mlp_hidden_size if self.mlp_hidden_size is not None else self.mlp_ratio * self.d_model

    def vision(self, key: str) -> Any:
        """A setting of the vision tower; the released model's where config.json doesn't have it."""
        return (self.vision_backbone or {}).get(key, _VISION[key])

    @property
    def feature_blocks(self) -> tuple[int, ...]:
        """The vision blocks whose outputs are the features, counted from 0, in the order of concatenation."""
        blocks = self.vision("image_num_layers")
        picked = tuple(layer % blocks for layer in self.vit_layers if -blocks <= layer < blocks)
        if len(picked) != len(self.vit_layers):
            raise ValueError(
                f"config.json: vit_layers must lie within the {blocks} vision blocks, got {list(self.vit_layers)}."
            )
        return picked

    def decoder_config(self) -> OlmoeConfig:
        """The decoder as transformers' OLMoE; a per-block k is set on the routers instead."""
        config = OlmoeConfig(
            vocab_size=self.embedding_rows,
            hidden_size=self.d_model,
            intermediate_size=self.mlp_width // 2,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            num_experts=self.moe_num_experts,
            num_experts_per_tok=max(self.top_k_per_block, default=1),
            norm_topk_prob=False,
            rms_norm_eps=self.layer_norm_eps,
            max_position_embeddings=self.max_position_embeddings or self.max_sequence_length,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            attention_dropout=self.attention_dropout,
            initializer_range=self.initializer_range,
            pad_token_id=None,  # OLMoE would give this row no gradient; MolmoE doesn't
            eos_token_id=None,
            tie_word_embeddings=False,
        )
        config._attn_implementation = self._attn_implementation
        config._experts_implementation = self._experts_implementation
        return config

    def vision_config(self) -> CLIPVisionConfig:
        """The vision tower as transformers' CLIP."""
        config = CLIPVisionConfig(
            hidden_size=self.vision("image_emb_dim"),
            intermediate_size=self.vision("image_mlp_dim"),
            num_hidden_layers=self.vision("image_num_layers"),
            num_attention_heads=self.vision("image_num_heads"),
            image_size=self.vision("image_default_input_size")[0],
            patch_size=self.vision("image_patch_size"),
            hidden_act=self.vision("image_mlp_activations"),
            layer_norm_eps=self.vision("image_norm_eps"),
        )
        config._attn_implementation = self._attn_implementation
        return config
