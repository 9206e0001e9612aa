"""Checkpoints of noise in several shards, as large as wanted: for what moves bytes, or reads headers alone."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def write_noise(
    directory: Path,
    config: Mapping[str, object],
    shapes: Mapping[str, tuple[int, ...]],
    shards: Sequence[Sequence[str]],
) -> None:
    """A checkpoint in bfloat16: `shapes` by name, `shards`: the names of each file in their order."""
    directory.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 2**16, 32 << 20, np.uint16).tobytes()
    weight_map = {}
    for s, names in enumerate(shards, 1):
        file = f"model-{s:05d}-of-{len(shards):05d}.safetensors"
        table, at = {}, 0
        for name in names:
            size = 2 * math.prod(shapes[name])
            table[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [at, at + size]}
            at += size
            weight_map[name] = file
        text = json.dumps(table).encode()
        text += b" " * (-len(text) % 8)
        with (directory / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for begin in range(0, at, len(noise)):
                out.write(noise[: min(len(noise), at - begin)])
    (directory / "config.json").write_text(json.dumps(dict(config)))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def split_evenly(names: Sequence[str], count: int) -> list[Sequence[str]]:
    """`count` runs of names, of about equal length."""
    return [names[s * len(names) // count : (s + 1) * len(names) // count] for s in range(count)]


def synthetic_olmoe(directory: Path, width: int, expert: int) -> None:
    """An OLMoE of 16 blocks and 64 experts in four shards, names sorted as the hub has them."""
    config = {
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "vocab_size": 50304, "hidden_size": width,
        "intermediate_size": expert, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_experts": 64, "num_experts_per_tok": 8, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "norm_topk_prob": False, "clip_qkv": None, "hidden_act": "silu",
        "attention_bias": False, "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (50304, width), "model.norm.weight": (width,), "lm_head.weight": (50304, width),
    }  # fmt: skip
    for i in range(16):
        block = f"model.layers.{i}."
        for part in ("q", "k", "v", "o"):
            shapes[f"{block}self_attn.{part}_proj.weight"] = (width, width)
        for part in ("self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}{part}.weight"] = (width,)
        shapes[f"{block}mlp.gate.weight"] = (64, width)
        for e in range(64):
            for part, shape in (("gate", (expert, width)), ("up", (expert, width)), ("down", (width, expert))):
                shapes[f"{block}mlp.experts.{e}.{part}_proj.weight"] = shape
    write_noise(directory, config, shapes, split_evenly(sorted(shapes), 4))
