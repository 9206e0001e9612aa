"""Write a planned float checkpoint into a directory: weights by moving byte ranges, config, side files.

Requires a directory of its own (see `stage.py`). Keeps the source's order of tensors and its shard
boundaries (or joins all in the order planned), coalesces neighbouring ranges, converts dtypes while streaming. A file
whose tensors are all unchanged is copied whole, header included: variants that differ only in k have the same weights.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from transform.checkpoint import Checkpoint, Tensor
from transform.copying import RangeCopier, can_reflink, write_at
from transform.errors import CheckpointError, WriteError
from transform.progress import Progress
from transform.safetensors_header import ITEM_BYTES, read_header
from transform.side_files import copy_side_files
from transform.stage import OUT
from transform.weight_files import INDEX, SINGLE

if TYPE_CHECKING:
    from transform.arrays import Array

_CHUNK = 8 << 20
_PAGE = 4096


@dataclass(frozen=True)
class Shard:
    """One weight file to be: its name, its tensors in order, and whether it equals the file they come from."""

    name: str
    tensors: tuple[Tensor, ...]
    whole: bool


def nothing(_: int) -> None:
    """Progress that nobody watches."""


def shards_of(checkpoint: Checkpoint) -> list[Shard]:
    """The weight files to be written: one per source file that still holds tensors, or one for all."""
    if checkpoint.joined:
        tensors = tuple(checkpoint.tensors.values())
        return [Shard(SINGLE, tensors, _equals_source(tensors))]
    grouped: dict[Path, list[Tensor]] = {}
    for tensor in checkpoint.tensors.values():
        grouped.setdefault(tensor.file, []).append(tensor)
    shards = []
    for number, members in enumerate(grouped.values(), 1):
        name = SINGLE if len(grouped) == 1 else f"model-{number:05d}-of-{len(grouped):05d}.safetensors"
        ordered = tuple(sorted(members, key=lambda t: (t.start, t.nbytes)))
        shards.append(Shard(name, ordered, _equals_source(ordered)))
    return shards


def _equals_source(tensors: Sequence[Tensor]) -> bool:
    source = tensors[0].file
    before = [(source, e.name, e.dtype) for e in read_header(source)]
    return before == [(t.file, t.name, t.dtype) for t in tensors]


def written_bytes(tensor: Tensor) -> int:
    """Size of a tensor as it will be stored; a packed one can't change any more."""
    if tensor.pack is not None:
        return tensor.nbytes
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


def write_checkpoint(checkpoint: Checkpoint, directory: Path, progress: Progress = nothing) -> dict[str, int]:
    """Write everything of `checkpoint` into the empty `directory`; returns bytes moved per way of copying."""
    refuse_packed(checkpoint)
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
    copy_side_files(checkpoint.path, checkpoint.side_files, directory)
    return ways


def write_json(path: Path, value: object) -> None:
    """JSON as the field writes it: two spaces, insertion order, a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def refuse_packed(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for quantised weights: whatever follows would build on their errors."""
    packed = next((t for t in checkpoint.tensors.values() if t.pack is not None), None)
    if packed is not None:
        raise CheckpointError(
            f"{checkpoint.path}: a variant is made from a checkpoint of floating point weights, {packed.name} is "
            f"{packed.stored}. Export with the form it has, or export from its source."
        )


def _check_space(shards: Sequence[Shard], directory: Path) -> None:
    """Bytes that aren't a source's own, or can't be shared with it, must fit."""
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    kept = {tensor.file for tensor in tensors if tensor.dtype == tensor.stored}
    shared = {file for file in kept if _shares_blocks(file, directory)}
    moving = (tensor for tensor in tensors if tensor.dtype != tensor.stored or tensor.file not in shared)
    insist_on_space(sum(map(written_bytes, moving)), directory)


def insist_on_space(needed: int, directory: Path, called: str = OUT) -> None:
    """Raise WriteError where `directory` has no room for so many bytes."""
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise WriteError(
            f"{directory.parent}: the variant's weights take {needed:,} bytes, {free:,} are free; nothing was written. "
            f"Free space or choose another {called}."
        )


def _shares_blocks(source: Path, directory: Path) -> bool:
    probe = directory / ".probe"
    with source.open("rb") as src, probe.open("wb") as dst:
        shared = can_reflink(src.fileno(), dst.fileno())
    probe.unlink()
    return shared


def _write_shard(shard: Shard, target: Path, progress: Progress) -> dict[str, int]:
    with ExitStack() as files:
        out = files.enter_context(target.open("w+b"))
        copiers: dict[Path, RangeCopier] = {}
        for tensor in shard.tensors:
            if tensor.file not in copiers:
                source = files.enter_context(tensor.file.open("rb"))
                copiers[tensor.file] = RangeCopier(source.fileno(), out.fileno(), progress)
        if shard.whole:
            copier = copiers[shard.tensors[0].file]
            copier.copy(0, 0, os.fstat(copier.source).st_size)
        else:
            _write_tensors(shard, copiers, out)
        ways: dict[str, int] = {}
        for copier in copiers.values():
            for way, count in copier.ways.items():
                ways[way] = ways.get(way, 0) + count
        return ways


def _write_tensors(shard: Shard, copiers: Mapping[Path, RangeCopier], out: BinaryIO) -> None:
    header = header_of(shard)
    out.write(header)
    out.flush()
    at = len(header)
    for start, run in coalesce(shard.tensors):
        copier = copiers[run[0].file]
        if run[0].dtype == run[0].stored:
            count = sum(t.nbytes for t in run)
            copier.copy(start, at, count)
            at += count
        else:
            for tensor in run:
                at += convert(tensor, copier.source, out.fileno(), at, copier.progress)


def coalesce(tensors: Sequence[Tensor]) -> list[tuple[int, list[Tensor]]]:
    """Runs of tensors that lie back to back in the source and need the same treatment -> (start, tensors)."""
    runs: list[tuple[int, list[Tensor]]] = []
    follows: tuple[Path, int, bool] | None = None
    for tensor in tensors:
        copied = tensor.dtype == tensor.stored
        if (tensor.file, tensor.start, copied) == follows:
            runs[-1][1].append(tensor)
        else:
            runs.append((tensor.start, [tensor]))
        follows = (tensor.file, tensor.start + tensor.nbytes, copied)
    return runs


def convert(tensor: Tensor, source: int, out: int, at: int, progress: Progress) -> int:
    """Write a tensor in its planned dtype to `at`; returns its bytes there."""
    done = 0
    for offset in range(0, tensor.nbytes, _CHUNK):
        data = read_range(tensor, source, offset, min(_CHUNK, tensor.nbytes - offset))
        done += write_at(out, rounded(tensor, data).tobytes(), at + done)
        progress(len(data))
    return done


def read_range(tensor: Tensor, source: int, offset: int, count: int) -> bytes:
    """`count` of the tensor's bytes from `offset` on."""
    data = os.pread(source, count, tensor.start + offset)
    if len(data) < count:
        raise CheckpointError(f"{tensor.file.name}: ended early: it changed while it was read.")
    return data


def rounded(tensor: Tensor, data: bytes) -> "Array":
    """Some of a tensor's bytes as a flat array of its planned dtype; raises CheckpointError where that overflows."""
    import ml_dtypes
    import numpy as np

    kinds = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
    before, after = kinds[tensor.stored], kinds[tensor.dtype]
    if before == after:
        return np.frombuffer(data, before)
    values = np.frombuffer(data, before).astype(np.float32)
    with np.errstate(over="ignore"):
        cast = values.astype(after)
    lost = np.isfinite(values) & ~np.isfinite(cast.astype(np.float32))
    if lost.any():
        raise CheckpointError(
            f"{tensor.name}: {tensor.dtype} can't hold {float(np.abs(values[lost]).max()):.6g}, "
            "the largest value. Use --dtype bfloat16 or float32."
        )
    return cast
