"""Small random checkpoints with what released ones rarely have: other sizes, 16 bits, grouped heads, clipping."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from tests.support.full_size import write_sparse_molmoe
from tests.support.paths import FIXTURES
from transform.arrays import Array

# Settings of `save_source` whose widths are multiples of a quantisation block.
BLOCKWISE = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 4, "num_experts": 8}
WORDS = ("User", "Assistant", ":", "what", "is", "this", "?")
# Sizes that no fixture of MolmoE has.
SIZES = {"d": 96, "E": 5, "V": 200, "V2": 128, "I": 40, "v": 80, "a": 80, "h": 80, "m": 112, "p": 40}
DECODER = {
    "d_model": 96,
    "n_heads": 6,
    "n_layers": 3,
    "moe_num_experts": 5,
    "mlp_hidden_size": 80,
    "vocab_size": 190,
    "embedding_size": 200,
}
VISION = {
    "image_emb_dim": 80,
    "image_head_dim": 16,
    "image_mlp_dim": 112,
    "image_num_heads": 5,
    "image_num_key_value_heads": 5,
    "image_num_layers": 6,
}


def save_source(path: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A random OLMoE, saved as transformers saves it."""
    sizes = {
        "vocab_size": 96, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_experts": 6, "num_experts_per_tok": 3, "max_position_embeddings": 256,
        "initializer_range": 0.1,  # at 0.3 the float32 noise of either side alone is 1e-5
        "bos_token_id": None, "eos_token_id": 95, "pad_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": settings.pop("rope_theta", 10000.0)},
    }  # fmt: skip
    torch.manual_seed(5)
    model = OlmoeForCausalLM(OlmoeConfig(**(sizes | settings)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones would hide a missing multiplication
                parameter.uniform_(0.5, 1.5)
    model.to(dtype).save_pretrained(path)
    return path


def load_stored(path: Path) -> Any:
    """What transformers makes of an OLMoE's stored weights, in float32."""
    return OlmoeForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def torch_logits(model: Any, ids: Array, mask: Array) -> Array:
    """[b, s] ids and mask -> [b, s, V] by PyTorch; positions count the tokens that the mask lets through."""
    with torch.no_grad():
        positions = (torch.from_numpy(mask).cumsum(1) - 1).clamp(min=0)
        out = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), position_ids=positions)
    return out.logits.numpy()


def random_ids(batch: int, length: int) -> Array:
    """Ids [b, s] of `save_source`'s vocabulary, neither padding nor end."""
    return np.random.default_rng(3).integers(2, 94, (batch, length))


def write_odd(directory: Path, **changes: Any) -> Path:
    """A random MolmoE checkpoint of SIZES; `changes` are config keys, and `sizes` for the symbols."""
    config = json.loads((FIXTURES / "config.json").read_text())
    sizes = SIZES | changes.pop("sizes", {})
    vision = config["vision_backbone"] | VISION | changes.pop("vision_backbone", {})
    config |= DECODER | changes | {"vision_backbone": vision}
    write_sparse_molmoe(directory, config, sizes=sizes | {"f": 80 * len(config["vit_layers"])})
    tensors = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator)
        is_norm = tensor.dim() == 1 and name.endswith("weight")
        tensors[name] = 1 + 0.2 * noise if is_norm else noise / math.sqrt(max(tensor.shape[-1] * (tensor.dim() > 1), 9))
    save_file(tensors, directory / "model.safetensors")
    return directory


def small_tokenizer(vocab_size: int, image_tokens: bool = False) -> PreTrainedTokenizerFast:
    """Whole words; the last id of the vocabulary ends a text, as in the fixtures."""
    vocabulary = {"<unk>": 0, "<pad>": 1, **{word: 10 + i for i, word in enumerate(WORDS)}, "<eos>": vocab_size - 1}
    if image_tokens:
        names = ("<im_col>", "<im_patch>", "<im_end>", "<im_start>")
        vocabulary |= {name: vocab_size + 10 + i for i, name in enumerate(names)}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>", bos_token=None
    )
