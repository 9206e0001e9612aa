"""`make bench`: the bars of the README, measured on this machine, as ratios against a baseline in the same run.

Interleaved runs, medians, peak memory of the whole process (the kernel's own maximum of the resident set).
Writes docs/bench.json and its page; `--quick` uses a smaller checkpoint and leaves them alone.
"""

import argparse
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench_activations import bars as activations_bars
from tests.bench_cost import bars as cost_bars
from tests.bench_decode import bars as decode_bars
from tests.bench_families import bars as families_bars
from tests.bench_family import bars as family_bars
from tests.bench_full_size import bars as full_size_bars
from tests.bench_onnx import bars as onnx_bars
from tests.bench_opening import bars as opening_bars
from tests.bench_packed import bars as packed_bars
from tests.bench_page import FIGURES, PAGE, render
from tests.bench_pick import bench_pick
from tests.bench_pictures import bars as picture_bars
from tests.bench_report import bench_report
from tests.bench_scoring import bars as scoring_bars
from tests.bench_sweep import bars as sweep_bars
from tests.bench_verify import bars as verify_bars
from tests.support.full_size import measure_emission, released_config, write_sparse_molmoe

ROOT = Path(__file__).parent.parent
# The peak is read inside the process: the kernel's ru_maxrss of a child starts at its parent's size.
REPORT = """
import runpy, sys
sys.argv = ["knobcast", *sys.argv[1:]]
try:
    runpy.run_module("export.command.main", run_name="__main__")
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("peak", peak.split()[1], file=sys.stderr)
"""
KNOBCAST = [sys.executable, "-c", REPORT]
DROP = "5,8,10,12"
RUNS = 5


def timed(command: list[str]) -> tuple[float, float]:
    """(seconds, peak resident MB where the process reports it) of one process."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(f"failed: {' '.join(command)}\n{done.stderr}")
    peaks = re.findall(r"^peak (\d+)$", done.stderr, re.M)
    return seconds, int(peaks[-1]) / 1024 if peaks else 0.0


def synthetic_olmoe(directory: Path, width: int, expert: int, shards: int = 4) -> None:
    """A multi-shard OLMoE checkpoint of 16 blocks and 64 experts in bfloat16, names sorted as the hub has them."""
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
    names = sorted(shapes)
    directory.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 2**16, 32 << 20, np.uint16).tobytes()
    weight_map = {}
    for s in range(shards):
        part_names = names[s * len(names) // shards : (s + 1) * len(names) // shards]
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        table, at = {}, 0
        for name in part_names:
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
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def bench_writer(work: Path, width: int, expert: int, runs: int) -> dict[str, Any]:
    """Drop 4 of 16 blocks against cp of the kept bytes; fsync on both sides."""
    synthetic_olmoe(work / "olmoe", width, expert)
    command = [*KNOBCAST, "export", str(work / "olmoe"), "--drop-blocks", DROP, "--no-onnx", "--no-verify", "--out"]
    timed([*command, str(work / "kept")])
    kept = sum(p.stat().st_size for p in (work / "kept").glob("*.safetensors"))
    copy = f"cp --reflink=never -r {work / 'kept'} {work / 'cp'} && sync {work / 'cp'}/* {work / 'cp'}"
    ours, theirs = [], []
    for _ in range(runs):
        ours.append(timed([*command, str(work / "ours")]))
        shutil.rmtree(work / "ours")
        theirs.append(timed(["sh", "-c", copy])[0])
        shutil.rmtree(work / "cp")
    seconds = statistics.median(s for s, _ in ours)
    baseline = statistics.median(theirs)
    shutil.rmtree(work / "olmoe")
    shutil.rmtree(work / "kept")
    return {
        "kept_bytes": kept,
        "seconds": round(seconds, 2),
        "cp_sync_seconds": round(baseline, 2),
        "ratio": round(seconds / baseline, 3),
        "peak_mb": round(max(m for _, m in ours)),
        "bar": "ratio <= 1.25, peak_mb <= 120",
    }


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
        result = bench_writer(mount, width, expert, runs)
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        image.unlink()
    return result | {"bar": "ratio <= 0.1"}


def bench_plan(work: Path, runs: int) -> dict[str, Any]:
    """`knobcast plan` on the full-size layout (sparse float32 files)."""
    write_sparse_molmoe(work / "molmoe", released_config(ROOT / "tests" / "fixtures" / "molmo"))
    command = [*KNOBCAST, "plan", str(work / "molmoe"), "--k", "4", "--drop-blocks", "2,4,10,13", "--tokens", "432"]
    found = [timed([*command, "--json"]) for _ in range(runs)]
    return {
        "seconds": round(statistics.median(s for s, _ in found), 2),
        "peak_mb": round(max(m for _, m in found)),
        "bar": "seconds <= 1, peak_mb <= 150",
    }


def bench_graphs(work: Path) -> dict[str, Any]:
    """All three graphs of the full-size model."""
    found = measure_emission(work / "molmoe")
    return {
        "tensors": found["tensors"],
        "seconds": round(found["seconds"], 2),
        "peak_mb": round(found["peak_bytes"] / 2**20),
        "file_mb": round(found["file_bytes"] / 1e6, 2),
        "bar": "seconds <= 2, peak_mb <= 300, file_mb <= 5",
    }


def all_bars(
    work: Path, width: int, expert: int, runs: int, quick: bool
) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """By name, in the page's order."""
    return [
        ("drop_4_of_16", lambda: bench_writer(work, width, expert, runs)),
        ("drop_4_of_16_reflink", lambda: bench_reflink(work, width, expert, runs)),
        ("plan_full_size", lambda: bench_plan(work, runs)),
        ("graphs_full_size", lambda: bench_graphs(work)),
        *family_bars(work, runs),
        *([] if quick else families_bars(work)),
        *([] if quick else onnx_bars(work, runs)),
        *([] if quick else decode_bars(work)),
        *opening_bars(work),
        *activations_bars(work),
        *([] if quick else cost_bars(work)),
        *picture_bars(work),
        *scoring_bars(work, runs, quick),
        *([] if quick else full_size_bars(work)),
        *([] if quick else packed_bars()),
        *([] if quick else sweep_bars(work)),
        *verify_bars(work, width, expert, runs),
        ("pick", lambda: bench_pick(work)),
        ("report", lambda: bench_report(work)),
    ]


def main() -> None:
    """Run every bar and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller checkpoint, three runs, docs/ untouched")
    parser.add_argument("--work", type=Path, help="where the synthetic checkpoints go (about 40 GB)")
    parser.add_argument("--only", nargs="+", default=[], help="these bars; the others keep their figures in docs/")
    options = parser.parse_args()
    width, expert, runs = (512, 128, 3) if options.quick else (2048, 512, RUNS)
    work = Path(tempfile.mkdtemp(prefix="knobcast-bench-", dir=options.work))
    bars = all_bars(work, width, expert, runs, options.quick)
    unknown = set(options.only) - {name for name, _ in bars}
    if unknown:
        raise SystemExit(f"bars are {', '.join(name for name, _ in bars)}; got {', '.join(sorted(unknown))}.")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    results: dict[str, Any] = (json.loads(FIGURES.read_text()) if options.only else {}) | {"machine": machine}
    try:
        for name, bar in bars:
            if options.only and name not in options.only:
                continue
            results[name] = bar()
            print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(results, indent=2))
    if not options.quick:
        FIGURES.write_text(json.dumps(results, indent=2) + "\n")
        PAGE.write_text(render(results))


if __name__ == "__main__":
    main()
