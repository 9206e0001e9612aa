"""Decoding in 4 bits with 8-bit activations at MolmoE's widths: the cache in place, and llama.cpp beside it."""

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from export.bench.gguf_file import write_gguf
from export.graph.decoder import text_graph
from export.run.bound import Bound
from export.run.graphs import Graphs
from export.variant import export_variant
from tests.bench_onnx import VOCAB, write_noise_olmoe
from tests.support.paths import ROOT
from transform.forms import form_named
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint

BLOCKS, STEPS, PASTS = 4, 20, (64, 512, 1024)
PROMPT, NEW, RUNS = 64, 33, 5


def write_variant(work: Path) -> Path:
    """The int4 variant, without its source; made once."""
    made = work / "decode-int4"
    if not made.exists():
        source = write_noise_olmoe(work / "decode-source", BLOCKS, narrow=True)
        knobs = replace(Knobs(form="int4"), activations="int8")
        export_variant(make_plan(read_checkpoint(source), knobs), made, verify=False)
        shutil.rmtree(source)
    return made


def bench_cache(work: Path) -> dict[str, Any]:
    """Milliseconds of a token as `run` decodes it, behind PASTS cached ones; sequences take turns."""
    directory = write_variant(work)
    copying = replace(form_named("int4"), one_attention=False)
    text_graph(read_checkpoint(directory), copying).write(directory / "copied.onnx")
    files = {"in_place": "text.onnx", "copied": "copied.onnx"}
    # two sessions each, A B B A: where a session's repacked weights come to lie takes up to a tenth of its time
    graphs = [(name, Graphs(directory, threads=1, text=files[name])) for name in (*files, *reversed(files))]
    rng = np.random.default_rng(5)
    found: dict[str, Any] = {"blocks": BLOCKS}
    for past in PASTS:
        sequences = [(name, Bound(opened)) for name, opened in graphs]
        prompt = rng.integers(0, VOCAB, (1, past))
        for _, sequence in sequences:
            sequence.prefill(prompt)
        times: dict[str, list[float]] = {name: [] for name in files}
        for turn in range(STEPS + 4):
            for name, sequence in sequences:
                token = rng.integers(VOCAB)  # its own: the last one's experts are in the processor's cache
                began = time.perf_counter()
                sequence.decode(int(token))
                if turn >= 4:
                    times[name].append(1e3 * (time.perf_counter() - began))
        middle = {name: statistics.median(values) for name, values in times.items()}
        found |= {f"{name}_{past}_ms": round(value, 2) for name, value in middle.items()}
        found[f"copied_over_in_place_{past}"] = round(middle["copied"] / middle["in_place"], 2)
    (directory / "copied.onnx").unlink()
    return found | {"bar": "copied_over_in_place_1024 >= 1.15"}


def bench_llama(work: Path) -> dict[str, Any]:
    """`knobcast bench --against llama.cpp`, and the bytes of both files."""
    if find_spec("xllamacpp") is None or find_spec("gguf") is None:
        return {"skipped": "needs pip install -e '.[llamacpp]'"}
    directory = write_variant(work)
    command = [
        sys.executable, "-m", "export.command.main", "bench", str(directory), "--against", "llama.cpp",
        "--threads", "1", "--prompt-tokens", str(PROMPT), "--new-tokens", str(NEW), "--runs", str(RUNS), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ours, theirs = json.loads(done.stdout)["contestants"]
    write_gguf(read_checkpoint(directory), work / "model.gguf")
    bytes_ratio = (directory / "model-int4.safetensors").stat().st_size / (work / "model.gguf").stat().st_size
    (work / "model.gguf").unlink()
    return {
        "blocks": BLOCKS,
        "decode_ms": round(1e3 * ours["step_seconds"]["p50"], 2),
        "llama_cpp_decode_ms": round(1e3 * theirs["step_seconds"]["p50"], 2),
        "decode_over_llama_cpp": round(ours["ratios"]["step"], 2),
        "prefill_ms": round(1e3 * ours["prefill_seconds"]["median"], 1),
        "llama_cpp_prefill_ms": round(1e3 * theirs["prefill_seconds"]["median"], 1),
        "prefill_over_llama_cpp": round(ours["ratios"]["prefill"], 2),
        "weights_ratio": round(bytes_ratio, 3),
        "bar": "decode_over_llama_cpp <= 1.5, prefill_over_llama_cpp <= 1.3, weights_ratio <= 1.02",
    }


def bars(work: Path) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py."""
    return [("cache_in_place", lambda: bench_cache(work)), ("llama_cpp", lambda: bench_llama(work))]
