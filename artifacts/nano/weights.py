"""The trained model as a checkpoint in the released layout: names, shards, index.

transformers' own saving gives the released names; the files are written here, with blocks in their numerical order and
an explicit header, so that the same weights are the same bytes.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from transform.molmoe import MolmoEForConditionalGeneration
from transform.weight_files import INDEX

SHARD_BYTES = 8_300_000  # of data; with its header a shard stays below 9,000,000


def write(model: MolmoEForConditionalGeneration, directory: Path) -> None:
    """Write the shards, in bfloat16, and their index."""
    everything = _released(model)
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name in sorted(everything, key=_place):
        size = everything[name].nbytes
        if filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        filled += size
        shards[-1][name] = everything[name]
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (directory / file).write_bytes(_safetensors(shard))
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in everything.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=0) + "\n")


def _released(model: MolmoEForConditionalGeneration) -> dict[str, Tensor]:
    """Released name -> bfloat16 tensor."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = [load_file(path) for path in sorted(Path(folder).glob("*.safetensors"))]
        return {name: tensor.to(torch.bfloat16) for file in saved for name, tensor in file.items()}


def _safetensors(shard: Mapping[str, Tensor]) -> bytes:
    """One file: header length, header padded to a multiple of 8 bytes, data in the given order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in shard.items():
        header[name] = {"dtype": "BF16", "shape": tuple(tensor.shape), "data_offsets": (end, end + tensor.nbytes)}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(tensor.contiguous().view(torch.int16).numpy().tobytes() for tensor in shard.values())
    return len(text).to_bytes(8, "little") + text + data


def _place(name: str) -> tuple[Any, ...]:
    """Blocks in their numerical order, so that a block lies in one piece."""
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split("."))
