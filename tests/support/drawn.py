"""Decoders of odd configurations, drawn at random: of every family that has graphs, none of them in the other tests.

What is drawn: widths that fill no block of a quantised file, heads of all widths and groupings, partial and stretched
rotary positions, biases, windows, sinks, experts of any number and k, shared and dense blocks, tied heads, types.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import transformers

from tests.support.zoo import randomise

MOST_WINDOW = 7  # every prompt is longer
WIDTHS = (32, 36, 40, 48, 52, 64, 72, 80, 96)
FILLING = (32, 64, 96)  # a width that experts take in must fill blocks of 32 where it is quantised
INNER = (20, 28, 36, 44, 52, 68, 84, 100, 132)  # of dense and shared layers, which need not
HEAD_WIDTHS = (16, 20, 24, 36, 48, 80, 96, 112, 256)
PARTS = (0.25, 0.5, 0.75, 1.0)
Words = dict[str, object]


@dataclass(frozen=True)
class Drawn:
    """A checkpoint to be, and how it is asked: kept blocks, three values of k (none where there are no experts)."""

    family: str
    seed: int
    kind: str
    config: Mapping[str, object]
    dtype: torch.dtype
    original: bool  # as released; False: experts in slabs
    keep: tuple[int, ...]
    ks: tuple[int, ...]
    vocabulary: int
    packs: bool  # int4 and int8 take it

    def write(self, directory: Path) -> Path:
        """The checkpoint, all that is trained random."""
        kind = getattr(transformers, self.kind)
        torch.manual_seed(self.seed)
        model = kind(kind.config_class(**self.config)).eval()
        randomise(model)
        model.to(self.dtype).save_pretrained(directory, save_original_format=self.original)
        return directory


class _Draw:
    """The dice of one configuration, and what was drawn so far."""

    def __init__(self, family: str, seed: int) -> None:
        self.dice = Random(f"{family} {seed}")
        dice = self.dice
        self.filling = dice.random() < 0.8
        self.layers = dice.randint(3, 5)
        self.experts = dice.choice((3, 5, 6, 8, 12))
        self.k = dice.choice((1, 2, 3, self.experts))
        self.groups = dice.choice([g for g in range(2, self.experts) if self.experts % g == 0] or [1])
        self.hidden = dice.choice(FILLING if self.filling else WIDTHS)
        self.head = dice.choice(HEAD_WIDTHS)
        self.kv = dice.choice((1, 2, 3))
        self.heads = self.kv * dice.choice((1, 2, 3))
        self.window = dice.randint(2, MOST_WINDOW)

    def flag(self) -> bool:
        return self.dice.random() < 0.5

    @property
    def inner(self) -> int:
        """Of an expert."""
        return self.dice.choice(FILLING if self.filling else INNER)

    @property
    def dense(self) -> int:
        return self.dice.choice(INNER)

    def sliding(self) -> list[str]:
        """A list of kinds, some of them sliding."""
        kinds = [self.dice.choice(("sliding_attention", "full_attention")) for _ in range(self.layers)]
        return [*kinds[:-1], "sliding_attention"]

    def rope(self, parts: bool = False, scaled: bool = True) -> Words:
        """Rotary parameters whose original length every prompt exceeds; of a part of each head if families may."""
        dice = self.dice
        kind = dice.choice(("default", "linear", "yarn", "llama3")) if scaled else "default"
        found: Words = {"rope_type": kind, "rope_theta": dice.choice((1e4, 5e5, 123456.0))}
        if kind != "default":
            found["factor"] = dice.choice((2.0, 4.0, 8.5))
        if kind in ("yarn", "llama3"):
            found["original_max_position_embeddings"] = dice.choice((8, 12, 16))
        if kind == "yarn":
            found |= dice.choice(({}, {"beta_fast": 16.0, "beta_slow": 2.0}, {"attention_factor": 1.3}))
            found["truncate"] = self.flag()
        if kind == "llama3":
            found |= {"low_freq_factor": 1.0, "high_freq_factor": dice.choice((2.0, 4.0))}
        if parts:
            fitting = [part for part in PARTS if int(self.head * part) % 2 == 0]
            found["partial_rotary_factor"] = dice.choice(fitting)
        return found

    def common(self) -> Words:
        """What all families have."""
        return {
            "vocab_size": self.dice.choice((97, 131, 212, 331)), "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv,
            "head_dim": self.head, "max_position_embeddings": 256, "initializer_range": 0.1, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": self.flag(),
            "rms_norm_eps": self.dice.choice((1e-6, 1e-5)), "rope_parameters": self.rope(),
        }  # fmt: skip

    def routed(self) -> Words:
        """Experts in groups, as DeepSeek's descendants name them."""
        size = self.experts // self.groups
        grouped = self.groups > 1 and size > 1
        taken = self.dice.randint(1, self.groups) if grouped else 1
        self.k = min(self.k, taken * size) if grouped and taken < self.groups else self.k
        return {
            "n_routed_experts": self.experts, "num_experts_per_tok": self.k,
            "routed_scaling_factor": self.dice.choice((1.0, 1.7, 2.5)), "n_group": self.groups if grouped else 1,
            "topk_group": taken, "n_shared_experts": self.dice.randint(1, 3), "norm_topk_prob": self.flag(),
            "moe_intermediate_size": self.inner,
        }  # fmt: skip

    def blocks(self) -> list[int]:
        """Some blocks, not all: the first, the last or those between."""
        return sorted(self.dice.sample(range(self.layers), self.dice.randint(0, self.layers - 2)))


def _local(draw: _Draw) -> Words:
    return {"num_local_experts": draw.experts, "num_experts_per_tok": draw.k, "intermediate_size": draw.inner}


def _named(draw: _Draw) -> Words:
    return {"num_experts": draw.experts, "num_experts_per_tok": draw.k}


def _sparse(draw: _Draw) -> Words:
    lists: Words = {"decoder_sparse_step": 2} if draw.flag() else {"mlp_only_layers": draw.blocks()}
    return {
        **_named(draw), **lists, "moe_intermediate_size": draw.inner, "intermediate_size": draw.dense,
        "norm_topk_prob": draw.flag(),
    }  # fmt: skip


def _multiplied(draw: _Draw) -> Words:
    return {
        **_local(draw), "embedding_multiplier": 1.5, "residual_multiplier": 0.7, "logits_scaling": 1.3,
        "attention_multiplier": draw.dice.choice((0.05, 0.2)), "attention_bias": draw.flag(),
    }  # fmt: skip


def _slid(draw: _Draw) -> Words:
    """Windows by a list, or by a number of first blocks without."""
    if not draw.flag():
        return {"use_sliding_window": False}
    where: Words = {"layer_types": draw.sliding()} if draw.flag() else {"max_window_layers": draw.layers - 1}
    return {"use_sliding_window": True, "sliding_window": draw.window, **where}


def _ernie(draw: _Draw) -> Words:
    start = draw.dice.randint(0, draw.layers - 2)
    return {
        "moe_num_experts": draw.experts, "moe_k": draw.k, "moe_intermediate_size": draw.inner,
        "intermediate_size": draw.dense, "moe_layer_start_index": start,
        "moe_layer_end_index": draw.dice.choice((-1, start + 1)), "moe_norm_min": draw.dice.choice((1e-12, 0.6)),
        "moe_num_shared_experts": draw.dice.randint(1, 3), "use_bias": draw.flag(),
    }  # fmt: skip


def _olmoe(draw: _Draw) -> Words:
    return {
        **_named(draw), "intermediate_size": draw.inner, "norm_topk_prob": draw.flag(), "tie_word_embeddings": False,
        "clip_qkv": draw.dice.choice((None, 0.8)), "rope_parameters": draw.rope(scaled=False), "head_dim": None,
        "hidden_size": draw.hidden + draw.hidden % 8, "num_attention_heads": 4,
        "num_key_value_heads": draw.dice.choice((1, 2, 4)),
    }  # fmt: skip


# model_type -> class of transformers, what it has besides what all have
FAMILIES: Mapping[str, tuple[str, Callable[[_Draw], Words]]] = {
    "qwen3_moe": ("Qwen3MoeForCausalLM", lambda d: {
        **_sparse(d), "attention_bias": d.flag(), "use_sliding_window": d.flag(), "sliding_window": d.window}),
    "mixtral": ("MixtralForCausalLM", lambda d: {**_local(d), "sliding_window": d.dice.choice((None, d.window))}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", lambda d: {
        **_sparse(d), **_slid(d), "shared_expert_intermediate_size": d.dense, "qkv_bias": d.flag()}),
    "granitemoe": ("GraniteMoeForCausalLM", _multiplied),
    "gpt_oss": ("GptOssForCausalLM", lambda d: {
        **_local(d), "sliding_window": d.window, "layer_types": d.sliding(), "attention_bias": d.flag(),
        "swiglu_limit": d.dice.choice((0.3, 7.0))}),
    "glm4_moe": ("Glm4MoeForCausalLM", lambda d: {
        **d.routed(), "intermediate_size": d.dense, "first_k_dense_replace": d.dice.randint(0, d.layers - 1),
        "use_qk_norm": d.flag(), "attention_bias": d.flag(), "rope_parameters": d.rope(parts=True)}),
    "ernie4_5_moe": ("Ernie4_5_MoeForCausalLM", _ernie),
    "granitemoeshared": ("GraniteMoeSharedForCausalLM", lambda d: {
        **_multiplied(d), "shared_intermediate_size": d.dense}),
    "dots1": ("Dots1ForCausalLM", lambda d: {
        **d.routed(), "intermediate_size": d.dense, "first_k_dense_replace": d.dice.randint(0, d.layers - 1),
        "attention_bias": d.flag(), "sliding_window": d.window, "layer_types": d.sliding()}),
    "solar_open": ("SolarOpenForCausalLM", lambda d: {
        **d.routed(), "attention_bias": d.flag()}),
    "llama": ("LlamaForCausalLM", lambda d: {
        "intermediate_size": d.dense, "mlp_bias": d.flag(), "attention_bias": d.flag(), "num_attention_heads": 4,
        "num_key_value_heads": d.dice.choice((1, 2, 4))}),
    "qwen2": ("Qwen2ForCausalLM", lambda d: {"intermediate_size": d.dense, **_slid(d)}),
    "qwen3": ("Qwen3ForCausalLM", lambda d: {"intermediate_size": d.dense, **_slid(d), "attention_bias": d.flag()}),
    "flex_olmo": ("FlexOlmoForCausalLM", lambda d: {
        **_named(d), "intermediate_size": d.inner, "attention_bias": d.flag(), "norm_topk_prob": d.flag()}),
    "olmoe": ("OlmoeForCausalLM", _olmoe),
}  # fmt: skip


def drawn(family: str, seed: int) -> Drawn:
    """The configuration of a family and a seed: the same at every call."""
    draw = _Draw(family, seed)
    kind, own = FAMILIES[family]
    config = draw.common() | own(draw)
    if config["head_dim"] is None:  # some classes take one, and no null
        del config["head_dim"]
    keep = sorted(draw.dice.sample(range(draw.layers), draw.dice.randint(2, draw.layers)))
    dense = not any("experts" in key for key in config)
    most = draw.experts
    if config.get("n_group", 1) != config.get("topk_group", 1):
        most = draw.experts // draw.groups * int(str(config["topk_group"]))  # a token reaches no more
    ks = () if dense else tuple(sorted({1, most, draw.k if 1 < draw.k < most else (most + 1) // 2}))
    return Drawn(
        family, seed, kind, config, draw.dice.choice((torch.float32, torch.bfloat16, torch.float16)), draw.flag(),
        tuple(keep), ks, int(str(config["vocab_size"])), dense or draw.filling,
    )  # fmt: skip
