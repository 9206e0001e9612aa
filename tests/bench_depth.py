"""The bars of dropping blocks: `cp` and `sync` of the bytes that stay take turns with ours, synced as well."""

import os
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench_families import QWEN3_30B, qwen3_tensors
from tests.support.noise import split_evenly, synthetic_olmoe, write_noise
from tests.support.spent import knobcast, seconds_of

# 6 GB instead of 61: every block and expert is there, each narrower
NARROW: Mapping[str, Any] = dict(QWEN3_30B) | {"hidden_size": 640, "moe_intermediate_size": 216}
SHARDS = 16
OLMOE_DROP = "5,8,10,12"
QWEN3_DROP = ",".join(map(str, range(3, 48, 4)))


def beside_cp(source: Path, drop: str, runs: int) -> dict[str, Any]:
    """Dropping blocks of a checkpoint in turns with `cp` and `sync` of what stays; removes the checkpoint."""
    kept, ours, copy = (source.with_name(f"{source.name}-{name}") for name in ("kept", "ours", "cp"))
    words: list[str | Path] = ["export", source, "--drop-blocks", drop, "--no-onnx", "--no-verify", "--quiet", "--out"]
    knobcast(*words, kept)
    baseline = ["sh", "-c", 'cp --reflink=never -r "$1" "$2" && sync "$2"/* "$2"', "sh", str(kept), str(copy)]
    spent, theirs = [], []
    for _ in range(runs):
        spent.append(knobcast(*words, ours))
        shutil.rmtree(ours)
        theirs.append(seconds_of(baseline))
        shutil.rmtree(copy)
    total = sum(file.stat().st_size for file in kept.glob("*.safetensors"))
    shutil.rmtree(kept)
    shutil.rmtree(source)
    seconds, cp = statistics.median(s.seconds for s in spent), statistics.median(theirs)
    return {
        "kept_bytes": total,
        "seconds": round(seconds, 2),
        "cp_sync_seconds": round(cp, 2),
        "ratio": round(seconds / cp, 3),
        "peak_mb": round(max(s.peak_mb for s in spent)),
    }


def bench_olmoe(work: Path, width: int, expert: int, runs: int) -> dict[str, Any]:
    """Drop 4 of 16 blocks."""
    synthetic_olmoe(work / "olmoe", width, expert)
    return beside_cp(work / "olmoe", OLMOE_DROP, runs) | {"bar": "ratio <= 1.25, peak_mb <= 120"}


def bench_reflink(work: Path, width: int, expert: int, runs: int) -> dict[str, Any]:
    """The same on XFS with reflinks, in a loop-mounted image; needs root and xfsprogs."""
    if os.geteuid() != 0 or shutil.which("mkfs.xfs") is None:
        return {"skipped": "needs root and mkfs.xfs (package xfsprogs)"}
    image, mount = work / "xfs.img", work / "xfs"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(24 << 30)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=False).returncode != 0:
        return {"skipped": "this machine can't mount a loop image"}
    try:
        result = bench_olmoe(mount, width, expert, runs)
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        image.unlink()
    return result | {"bar": "ratio <= 0.1"}


def in_slabs(tensors: Mapping[str, tuple[int, ...]], experts: int) -> dict[str, tuple[int, ...]]:
    """The same table as transformers 5 writes it: the experts of a block in two arrays, gate above up."""
    table: dict[str, tuple[int, ...]] = {}
    for name, shape in tensors.items():
        block, found, expert = name.partition("experts.")
        if not found:
            table[name] = shape
        elif expert == "0.down_proj.weight":
            table[f"{block}experts.down_proj"] = (experts, *shape)
        elif expert == "0.gate_proj.weight":
            table[f"{block}experts.gate_up_proj"] = (experts, 2 * shape[0], shape[1])
    return table


def bench_qwen3(work: Path, slabs: bool, runs: int) -> dict[str, Any]:
    """Drop every fourth block of Qwen3-30B-A3B's layout; names are sorted in each shard, as safetensors does."""
    tensors = qwen3_tensors(NARROW)
    if slabs:
        tensors = in_slabs(tensors, NARROW["num_experts"])
    source = work / "qwen3"
    write_noise(source, NARROW, tensors, [sorted(names) for names in split_evenly(list(tensors), SHARDS)])
    return beside_cp(source, QWEN3_DROP, runs) | {"bar": "ratio <= 1.25"}


def bars(work: Path, width: int, expert: int, runs: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py: those of a checkpoint of any size."""
    return [
        ("drop_4_of_16", partial(bench_olmoe, work, width, expert, runs)),
        ("drop_4_of_16_reflink", partial(bench_reflink, work, width, expert, runs)),
    ]


def families_bars(work: Path, runs: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py: those of 6 GB."""
    return [
        ("families_drop_12_of_48", partial(bench_qwen3, work, False, runs)),
        ("families_drop_12_of_48_slabs", partial(bench_qwen3, work, True, runs)),
    ]
