"""Checkpoints at their full size as sparse files, and what emitting their graphs costs. For tests and the bench.

No number is stored: the files are holes behind a real header, so whatever reads weights shows in time or memory.
"""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT
from transform.architectures import architecture_of, lookup

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# MolmoE-1B as released, on top of the fixtures' config, which has the same keys.
RELEASED: Mapping[str, Any] = {
    "d_model": 2048,
    "n_layers": 16,
    "n_heads": 16,
    "moe_num_experts": 64,
    "moe_top_k": 8,
    "mlp_hidden_size": 2048,
    "vocab_size": 50280,
    "embedding_size": 50304,
    "max_sequence_length": 4096,
    "max_position_embeddings": 32768,
    "vit_layers": [-2, -9],
}
RELEASED_VISION: Mapping[str, Any] = {
    "image_emb_dim": 1024,
    "image_head_dim": 64,
    "image_mlp_dim": 4096,
    "image_num_heads": 16,
    "image_num_key_value_heads": 16,
    "image_num_layers": 23,
}
SIZES = {
    "d": 2048,
    "E": 64,
    "V": 50304,
    "V2": 128,
    "I": 1024,
    "v": 1024,
    "m": 4096,
    "p": 1024,
    "a": 1024,
    "h": 1024,
    "f": 2048,
}

MEASURE = """
import json, re, sys, time
from pathlib import Path
start = time.perf_counter()
from export.files.genai import write_genai_config
from export.graph.emit import emit_graphs
from export.files.io_spec import write_io
from transform.forms import REFERENCE
from transform.read import read_checkpoint
imported = time.perf_counter()
directory = Path(sys.argv[1])
checkpoint = read_checkpoint(directory)
files = emit_graphs(checkpoint, directory, int(sys.argv[2]) or None, REFERENCE)
files += [write_io(checkpoint, directory, REFERENCE), write_genai_config(checkpoint, directory, REFERENCE)]
done = time.perf_counter()
print(json.dumps({
    "seconds": done - start,
    "seconds_after_imports": done - imported,
    # not getrusage: its peak is inherited from the parent at fork
    "peak_bytes": int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024,
    "file_bytes": sum(file.stat().st_size for file in files),
    "tensors": len(checkpoint.tensors),
}))
"""


def released_config(fixtures: Path, **changes: Any) -> dict[str, Any]:
    """The config of MolmoE-1B as released."""
    config = json.loads((fixtures / "config.json").read_text())
    vision = config["vision_backbone"] | RELEASED_VISION
    return config | dict(RELEASED) | {"vision_backbone": vision} | changes


def write_sparse_molmoe(
    directory: Path, config: Mapping[str, Any], dtype: str = "F32", sizes: Mapping[str, int] | None = None
) -> Path:
    """A MolmoE checkpoint of holes in one file; `sizes` gives the architecture's symbols their numbers."""
    architecture = architecture_of(config)
    settings = architecture.settings(config)
    table: dict[str, dict[str, Any]] = {}
    at = 0
    for names, symbols in architecture.roles.values():
        name = names[0]
        shape = [size_of(symbol, sizes or SIZES) for symbol in symbols]
        counts = {"i": settings.layers, "e": settings.experts}
        counts |= {index: lookup(config, key) for index, key in architecture.counts.items()}
        ranges = [range(counts[index]) if f"{{{index}}}" in name else range(1) for index in ("i", "e", "j")]
        for i in ranges[0]:
            for e in ranges[1]:
                for j in ranges[2]:
                    size = math.prod(shape) * ITEM_BYTES[dtype]
                    entry = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
                    table[name.format(i=i, e=e, j=j)] = entry
                    at += size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    directory.mkdir(parents=True)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def write_sparse(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], dtype: str
) -> Path:
    """A checkpoint of holes in one file: these names, shapes and config."""
    table: dict[str, dict[str, Any]] = {}
    at = 0
    for name, shape in tensors.items():
        size = math.prod(shape) * ITEM_BYTES[dtype]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    directory.mkdir(parents=True)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    (directory / "config.json").write_text(json.dumps(dict(config)))
    return directory


def size_of(symbol: str, sizes: Mapping[str, int]) -> int:
    """A shape symbol such as `3*d` in numbers."""
    factor, _, name = symbol.rpartition("*")
    return int(factor or 1) * (int(name) if name.isdigit() else sizes[name])


def measure_emission(directory: Path, crops: int = 0) -> dict[str, Any]:
    """Emit a checkpoint's graphs in a fresh process: seconds, peak memory of that process, bytes of the files."""
    command = [sys.executable, "-c", MEASURE, str(directory), str(crops)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
