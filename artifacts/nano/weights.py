"""Random weights of the nano model under the released names: drawn from a seed, the same bits on any machine.

Only the raw stream of PCG64 and exact scaling are used (uniform values, no libm), and an explicit header.
Scales are chosen so that inputs lead to different logits, every block changes the result, and the router has
clear preferences; nothing is trained.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transform.architectures import architecture_of
from transform.checkpoint import INDEX

SEED = 20240925
SHARD_BYTES = 8_300_000  # of data; with its header a shard stays below 9,000,000
# Standard deviation × sqrt(inputs), by role; 1 keeps the variance of a normalised input.
GAINS = {
    "attention.out": 0.4,
    "router": 2.0,  # the 8 chosen of 64 experts then hold more than half of the mass
    "expert.down": 1.5,  # silu(gate) * up is small, and weighted by the router
    "head": 1.5,
    "pool.q.weight": 2.0,
    "projector.down": 0.15,  # image features as large as text embeddings
}
STANDARD = {"embedding": 1.0, "embedding.extra": 1.0, "vision.class": 0.5, "vision.position": 0.5, "vision.pad": 0.5}


def tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], NDArray[np.uint16]]]:
    """(name, shape, bfloat16 bits) of every tensor, in the order of the architecture's roles and blocks."""
    architecture = architecture_of(config)
    vision = config["vision_backbone"]
    half = config["mlp_hidden_size"] // 2
    sizes = {
        "d": config["d_model"], "E": config["moe_num_experts"], "I": half, "p": half,
        "V": config["embedding_size"], "V2": config["additional_vocab_size"],
        "v": vision["image_emb_dim"], "m": vision["image_mlp_dim"], "f": 2 * vision["image_emb_dim"],
        "a": vision["image_num_heads"] * vision["image_head_dim"],
        "h": vision["image_num_heads"] * vision["image_head_dim"],
    }  # fmt: skip
    for role, (names, symbols) in architecture.roles.items():
        shape = tuple(_size(symbol, sizes) for symbol in symbols)
        for i in range(config["n_layers"] if "{i}" in names[0] else 1):
            for e in range(config["moe_num_experts"] if "{e}" in names[0] else 1):
                for j in range(vision["image_num_layers"] if "{j}" in names[0] else 1):
                    name = names[0].format(i=i, e=e, j=j)
                    bits = _bits(name, role, shape)
                    if role == "head":
                        bits[config["vocab_size"] :] = 0  # no text: image tokens and unused rows aren't answers
                    yield name, shape, bits


def write(config: Mapping[str, Any], directory: Path) -> None:
    """Write the shards and their index."""
    everything = sorted(tensors(config), key=lambda t: _place(t[0]))
    shards: list[dict[str, tuple[tuple[int, ...], bytes]]] = [{}]
    filled = 0
    for name, shape, bits in everything:
        if filled + bits.nbytes > SHARD_BYTES:
            shards.append({})
            filled = 0
        filled += bits.nbytes
        shards[-1][name] = shape, bits.astype("<u2").tobytes()
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (directory / file).write_bytes(_safetensors(shard))
        weight_map |= dict.fromkeys(shard, file)
    total = sum(bits.nbytes for _, _, bits in everything)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=0) + "\n")


def _safetensors(shard: Mapping[str, tuple[tuple[int, ...], bytes]]) -> bytes:
    """One file: header length, header padded to a multiple of 8 bytes, data in the given order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, data) in shard.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (end, end + len(data))}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, data in shard.values())


def _bits(name: str, role: str, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Uniform values of the role's spread, rounded to bfloat16; a stream of its own for each name."""
    if "norm" in role and not role.endswith("bias"):
        return np.full(shape, 0x3F80, np.uint16)  # 1.0
    count = math.prod(shape)
    stream = np.random.PCG64([SEED, *hashlib.sha256(name.encode()).digest()[:8]])
    raw = stream.random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]
    if role.endswith("bias"):
        spread = 0.05
    elif role in STANDARD:
        spread = STANDARD[role]
    else:
        spread = GAINS.get(role, 1.0) / math.sqrt(shape[-1])
    unit = (raw.astype(np.float64) - 32767.5) / 32768  # exact, in (-1, 1)
    values = (unit * (spread * math.sqrt(3))).astype(np.float32).reshape(shape)
    whole = values.view(np.uint32)
    return ((whole + 0x7FFF + ((whole >> 16) & 1)) >> 16).astype(np.uint16)  # nearest, ties to even


def _place(name: str) -> tuple[Any, ...]:
    """Blocks in their numerical order, so that a block lies in one piece."""
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split("."))


def _size(symbol: str, sizes: Mapping[str, int]) -> int:
    if symbol.isdigit():
        return int(symbol)
    factor, _, name = symbol.rpartition("*")
    return int(factor or 1) * sizes[name]
