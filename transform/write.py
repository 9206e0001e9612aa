"""Write a planned checkpoint into a directory: weights by moving byte ranges, config, side files.

Requires a directory of its own (see `stage.py`). Keeps the source's order of tensors and its shard boundaries,
coalesces neighbouring ranges, converts dtypes while streaming. A file whose tensors are all unchanged is copied
whole, header included, so that variants that differ only in k have byte-identical weights.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transform.checkpoint import INDEX, SINGLE, Checkpoint, Tensor
from transform.copying import RangeCopier, can_reflink, write_at
from transform.errors import CheckpointError, WriteError
from transform.safetensors_header import ITEM_BYTES, read_header

_CHUNK = 8 << 20
_PAGE = 4096


@dataclass(frozen=True)
class Shard:
    """One weight file to be: its name, its source, its tensors in order, and whether it equals its source."""

    name: str
    source: Path
    tensors: tuple[Tensor, ...]
    whole: bool


def nothing(_: int) -> None:
    """Progress that nobody watches."""


def shards_of(checkpoint: Checkpoint) -> list[Shard]:
    """The weight files to be written: one per source file that still holds tensors."""
    grouped: dict[Path, list[Tensor]] = {}
    for tensor in checkpoint.tensors.values():
        grouped.setdefault(tensor.file, []).append(tensor)
    shards = []
    for number, (source, tensors) in enumerate(grouped.items(), 1):
        name = SINGLE if len(grouped) == 1 else f"model-{number:05d}-of-{len(grouped):05d}.safetensors"
        ordered = tuple(sorted(tensors, key=lambda t: (t.start, t.nbytes)))
        before = [(e.name, e.dtype) for e in read_header(source)]
        after = [(t.name, t.dtype) for t in ordered]
        shards.append(Shard(name, source, ordered, before == after))
    return shards


def written_bytes(tensor: Tensor) -> int:
    """Size of a tensor as it will be stored."""
    return math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]


def header_of(shard: Shard) -> bytes:
    """The header to be written, padded so that the data keeps the source's position modulo a page.

    Same phase, same blocks: that is what lets a reflink share them.
    """
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in shard.tensors:
        size = written_bytes(tensor)
        table[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(table, separators=(",", ":")).encode()
    phase = shard.tensors[0].start % _PAGE
    text += b" " * ((phase - 8 - len(text)) % _PAGE)
    return len(text).to_bytes(8, "little") + text


def write_checkpoint(
    checkpoint: Checkpoint, directory: Path, progress: Callable[[int], None] = nothing
) -> dict[str, int]:
    """Write everything of `checkpoint` into the empty `directory`; returns bytes moved per way of copying."""
    shards = shards_of(checkpoint)
    _check_space(shards, directory)
    ways: dict[str, int] = {}
    for shard in shards:
        for way, count in _write_shard(shard, directory / shard.name, progress).items():
            ways[way] = ways.get(way, 0) + count
    if len(shards) > 1:
        weight_map = {t.name: shard.name for shard in shards for t in shard.tensors}
        total = sum(written_bytes(t) for t in checkpoint.tensors.values())
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(directory / "config.json", checkpoint.config)
    for name in checkpoint.side_files:
        shutil.copyfile(checkpoint.path / name, directory / name)
    return ways


def write_json(path: Path, value: object) -> None:
    """JSON as the field writes it: two spaces, insertion order, a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def _check_space(shards: Sequence[Shard], directory: Path) -> None:
    needed = sum(written_bytes(t) for shard in shards for t in shard.tensors)
    free = shutil.disk_usage(directory).free
    if needed <= free or _shares_blocks(shards[0].source, directory):
        return
    raise WriteError(
        f"{directory.parent}: the variant's weights take {needed:,} bytes, {free:,} are free; nothing was written. "
        "Free space or choose another --out."
    )


def _shares_blocks(source: Path, directory: Path) -> bool:
    probe = directory / ".probe"
    with source.open("rb") as src, probe.open("wb") as dst:
        shared = can_reflink(src.fileno(), dst.fileno())
    probe.unlink()
    return shared


def _write_shard(shard: Shard, target: Path, progress: Callable[[int], None]) -> dict[str, int]:
    with shard.source.open("rb") as source, target.open("w+b") as out:
        copier = RangeCopier(source.fileno(), out.fileno(), progress)
        if shard.whole:
            copier.copy(0, 0, os.fstat(source.fileno()).st_size)
            return copier.ways
        header = header_of(shard)
        out.write(header)
        out.flush()
        at = len(header)
        for start, run in coalesce(shard.tensors):
            if run[0].dtype == run[0].stored:
                count = sum(t.nbytes for t in run)
                copier.copy(start, at, count)
                at += count
            else:
                for tensor in run:
                    at += _convert(tensor, source.fileno(), out.fileno(), at, progress)
        return copier.ways


def coalesce(tensors: Sequence[Tensor]) -> list[tuple[int, list[Tensor]]]:
    """Runs of tensors that lie back to back in the source and need the same treatment -> (start, tensors)."""
    runs: list[tuple[int, list[Tensor]]] = []
    end, plain = -1, False
    for tensor in tensors:
        copied = tensor.dtype == tensor.stored
        if tensor.start == end and copied == plain:
            runs[-1][1].append(tensor)
        else:
            runs.append((tensor.start, [tensor]))
        end, plain = tensor.start + tensor.nbytes, copied
    return runs


def _convert(tensor: Tensor, source: int, out: int, at: int, progress: Callable[[int], None]) -> int:
    import ml_dtypes
    import numpy as np

    kinds = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
    before, after = kinds[tensor.stored], kinds[tensor.dtype]
    done = 0
    for offset in range(0, tensor.nbytes, _CHUNK):
        data = os.pread(source, min(_CHUNK, tensor.nbytes - offset), tensor.start + offset)
        if len(data) < min(_CHUNK, tensor.nbytes - offset):
            raise CheckpointError(f"{tensor.file.name}: ended early: it changed while it was read.")
        values = np.frombuffer(data, before).astype(np.float32)
        with np.errstate(over="ignore"):
            cast = values.astype(after)
        lost = np.isfinite(values) & ~np.isfinite(cast.astype(np.float32))
        if lost.any():
            raise CheckpointError(
                f"{tensor.name}: {tensor.dtype} can't hold {float(np.abs(values[lost]).max()):.6g}, "
                "the largest value. Use --dtype bfloat16 or float32."
            )
        done += write_at(out, cast.tobytes(), at + done)
        progress(len(data))
    return done
