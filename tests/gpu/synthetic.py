"""OLMoE checkpoints of float16 noise in one file, experts stacked as the cuda form has them: written once, then read.

Bounded memory: every tensor is a run of one block of noise, from a random place in it.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NOISE = 16 << 20  # values
MEMORY_PER_BLOCK = 0.85e9  # bytes of one block at real widths


@dataclass(frozen=True)
class Sizes:
    """Of an OLMoE checkpoint; the defaults are MolmoE's and OLMoE's own."""

    layers: int = 1
    width: int = 2048
    inner: int = 1024
    experts: int = 64
    heads: int = 16
    vocab: int = 50304
    k: int = 8

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor in file order."""
        d = self.width
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, d)}
        for i in range(self.layers):
            block = f"model.layers.{i}."
            shapes |= {f"{block}self_attn.{part}_proj.weight": (d, d) for part in "qkvo"}
            norms = ("self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm")
            shapes |= {f"{block}{part}.weight": (d,) for part in norms}
            shapes[f"{block}mlp.gate.weight"] = (self.experts, d)
            for part, shape in (("gate", (self.inner, d)), ("up", (self.inner, d)), ("down", (d, self.inner))):
                shapes |= {f"{block}mlp.experts.{e}.{part}_proj.weight": shape for e in range(self.experts)}
        return shapes | {"model.norm.weight": (d,), "lm_head.weight": (self.vocab, d)}

    def nbytes(self) -> int:
        """Of the weight file."""
        return 2 * sum(math.prod(shape) for shape in self.shapes().values())


def write_noise(directory: Path, sizes: Sizes, scale: float = 0.02) -> Path:
    """The checkpoint, unless it is already there; matrices of `scale`, norms of 1."""
    config = {
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "vocab_size": sizes.vocab,
        "hidden_size": sizes.width, "intermediate_size": sizes.inner, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.heads, "num_experts": sizes.experts,
        "num_experts_per_tok": sizes.k, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "norm_topk_prob": False, "clip_qkv": None, "hidden_act": "silu", "attention_bias": False,
        "tie_word_embeddings": False, "dtype": "float16", "eos_token_id": 0, "bos_token_id": 0,
    }  # fmt: skip
    about = directory / "config.json"
    if about.is_file() and json.loads(about.read_text()) == config:
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    at, table = 0, {}
    for name, shape in sizes.shapes().items():
        nbytes = 2 * math.prod(shape)
        table[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % 4096)
    random = np.random.default_rng(0)
    count = min(NOISE, 2 * max(math.prod(shape) for shape in sizes.shapes().values()))
    noise = (random.standard_normal(count, np.float32) * np.float32(scale)).astype(np.float16)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for shape in sizes.shapes().values():
            left = math.prod(shape)
            if len(shape) == 1:
                file.write(np.ones(left, np.float16).tobytes())
                continue
            while left:
                taken = min(left, count // 2)
                start = int(random.integers(0, count - taken + 1))
                file.write(noise[start : start + taken].data.cast("B"))
                left -= taken
    about.write_text(json.dumps(config))  # last: a file without it is written again
    return directory
