"""The bars of scoring for `make bench`: against the plain loop in the same run, counted and timed."""

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from importance.ablation import measure, single_ablations
from importance.blocks import ResidentBlocks
from importance.calling import additive
from importance.chunks import Chunk, from_batch, pack_chunks
from importance.configurations import Config, block_evaluations, naive_block_evaluations, without
from importance.engine import Engine, full_config
from importance.evaluate import prepare
from importance.objectives import NegativeLogLikelihood
from importance.prompts import load_processor
from importance.readers.read import read_samples
from importance.search.exact import depth_first
from tests.support.full_size import SIZES, released_config, size_of
from tests.support.paths import ROOT
from transform.architectures import architecture_of
from transform.load import load_model
from transform.read import read_checkpoint
from transform.runtime import BlockMaskWrapper, find_decoder
from transform.source import DEFAULT

CALIBRATION = ROOT / "artifacts" / "molmoe-nano" / "data" / "calibration.jsonl"
FIXTURES = ROOT / "tests" / "fixtures" / "molmo"
MIDDLE = tuple(range(1, 15))


def olmoe_in_memory(width: int, experts: int) -> Any:
    """A random OLMoE of 16 blocks."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=1024, hidden_size=width, intermediate_size=width // 2, num_hidden_layers=16,
        num_attention_heads=width // 32, num_experts=experts, num_experts_per_tok=4, max_position_embeddings=2048,
    )  # fmt: skip
    model = OlmoeForCausalLM(config).eval()
    model.set_experts_implementation("grouped_mm")
    return model


def batch_of(rows: int, size: int) -> Mapping[str, Tensor]:
    """Random ids, the last two of each row scored."""
    ids = torch.randint(3, 1024, (rows, size), generator=torch.Generator().manual_seed(1))
    labels = torch.full_like(ids, -100)
    labels[:, -2:] = ids[:, -2:]
    return {"input_ids": ids, "labels": labels}


@torch.no_grad()
def plain_loop(model: Any, chunk: Chunk, configs: Sequence[Config]) -> np.ndarray:
    """Losses [configs, samples]: for each configuration the whole model, blocks masked."""
    found = []
    for config in configs:
        with BlockMaskWrapper(model, [k > 0 for k in config]):
            hidden = find_decoder(model)(
                inputs_embeds=chunk.hidden, attention_mask=additive(chunk.allowed, chunk.hidden.dtype),
                position_ids=chunk.positions, use_cache=False,
            ).last_hidden_state  # fmt: skip
            logp = model.get_output_embeddings()(hidden.flatten(0, 1)[chunk.where]).double().log_softmax(-1)
        found.append([-logp[list(c.at), list(c.ids)].mean().item() for c in chunk.candidates])
    return np.array(found)


def engine_losses(model: Any, chunk: Chunk, configs: Sequence[Config], tokens_per_call: int | None) -> np.ndarray:
    """The same by the engine."""
    engine = Engine(ResidentBlocks(model), full_config(model), tokens_per_call)
    return measure(engine, [chunk], configs, NegativeLogLikelihood())


def ratio_of(ours: Callable[[], np.ndarray], theirs: Callable[[], np.ndarray], runs: int) -> dict[str, Any]:
    """Interleaved runs; medians of seconds, their ratio, the largest difference of the losses."""
    times: tuple[list[float], list[float]] = ([], [])
    results = []
    for run in range(runs + 1):
        for side, function in enumerate((ours, theirs)):
            start = time.perf_counter()
            results.append(function())
            if run:  # the first warms up
                times[side].append(time.perf_counter() - start)
    seconds, baseline = (statistics.median(side) for side in times)
    return {
        "seconds": round(seconds, 3),
        "plain_loop_seconds": round(baseline, 3),
        "ratio": round(seconds / baseline, 3),
        "largest_difference": float(np.abs(results[0] - results[1]).max()),
    }


def bench_sweep(runs: int) -> dict[str, Any]:
    """All 16 single-block ablations, 1,024 tokens a call."""
    model = olmoe_in_memory(512, 32)
    chunk = from_batch(model, batch_of(4, 256))
    configs = single_ablations(full_config(model))
    found = ratio_of(lambda: engine_losses(model, chunk, configs, 0), lambda: plain_loop(model, chunk, configs), runs)
    return {"tokens_per_call": 1024, **found, "bar": "ratio <= 0.56, largest_difference <= 0"}


def bench_stacked(runs: int) -> dict[str, Any]:
    """The same with 16 tokens a call."""
    model = olmoe_in_memory(512, 32)
    chunk = from_batch(model, batch_of(1, 16))
    configs = single_ablations(full_config(model))
    found = ratio_of(
        lambda: engine_losses(model, chunk, configs, None), lambda: plain_loop(model, chunk, configs), 3 * runs
    )
    return {"tokens_per_call": 16, **found, "bar": "ratio <= 0.33"}


def bench_exact(sampled: int = 128) -> dict[str, Any]:
    """All 2^14 sets of a small model's 16 blocks, first and last kept; the plain loop on some of the same sets."""
    model = olmoe_in_memory(64, 8)
    chunk = from_batch(model, batch_of(1, 16))
    full = full_config(model)
    configs = [without(full, chosen) for chosen in depth_first(MIDDLE, 14)]
    engine = Engine(ResidentBlocks(model), full)
    start = time.perf_counter()
    losses = measure(engine, [chunk], configs, NegativeLogLikelihood())
    seconds = time.perf_counter() - start
    some = random.Random(0).sample(range(len(configs)), sampled)
    start = time.perf_counter()
    plain = plain_loop(model, chunk, [configs[n] for n in some])
    naive = (time.perf_counter() - start) * naive_block_evaluations(configs)
    naive /= naive_block_evaluations([configs[n] for n in some])
    counted, all_counted = engine.report.block_evaluations, naive_block_evaluations(configs)
    return {
        "sets": len(configs),
        "block_evaluations": counted,
        "naive_block_evaluations": all_counted,
        "share": round(counted / all_counted, 3),
        "calls": engine.report.calls,
        "seconds": round(seconds, 1),
        f"plain_loop_seconds_from_{sampled}_sets": round(naive, 1),
        "ratio": round(seconds / naive, 3),
        "largest_difference": float(np.abs(losses[some] - plain).max()),
        "bar": "share <= 0.25",
    }


def bench_embedded(pictures: int = 2, sampled: int = 8) -> dict[str, Any]:
    """All sets of at most 4 of the embedded model's middle blocks, answers' likelihood on a few of its pictures."""
    if not CALIBRATION.is_file():
        return {"skipped": "needs the questions: make nano-data"}
    model = load_model(DEFAULT)
    samples = [s for s in read_samples(CALIBRATION, 200) if s.images]
    chosen = list(dict.fromkeys(s.images[0] for s in samples))[:pictures]
    samples = [s for s in samples if s.images[0] in chosen]
    prepared = prepare(model, load_processor(read_checkpoint(DEFAULT)), samples, tokens=288)
    references = [[prepared.prompts.answer(model, s, a) for a in s.answers] for s in samples]
    chunks = list(pack_chunks(model, prepared, references))
    full = full_config(model)
    configs = [without(full, chosen_set) for chosen_set in depth_first(MIDDLE, 4)]
    engine = Engine(ResidentBlocks(model), full)
    start = time.perf_counter()
    measure(engine, chunks, configs, NegativeLogLikelihood())
    seconds = time.perf_counter() - start
    some = random.Random(0).sample(configs, sampled)
    start = time.perf_counter()
    for chunk in chunks:
        plain_loop(model, chunk, some)
    naive = (time.perf_counter() - start) * naive_block_evaluations(configs) / naive_block_evaluations(some)
    return {
        "sets": len(configs),
        "questions": len(samples),
        "block_evaluations_per_picture": block_evaluations(configs),
        "naive_block_evaluations_per_picture": naive_block_evaluations(configs),
        "share": round(block_evaluations(configs) / naive_block_evaluations(configs), 3),
        "seconds": round(seconds, 1),
        f"plain_loop_seconds_from_{sampled}_sets": round(naive, 1),
        "ratio": round(seconds / naive, 3),
    }


def write_noise_molmoe(directory: Path) -> Path:
    """A MolmoE-1B of noise in bfloat16 (14.4 GB, 16 shards): matrices of 1/sqrt(width), norms of 1."""
    config = released_config(FIXTURES)
    architecture = architecture_of(config)
    settings = architecture.settings(config)
    table = np.random.default_rng(0).standard_normal(1 << 24, np.float32)
    directory.mkdir(parents=True)
    groups: dict[str, list[tuple[str, list[int]]]] = {}
    for names, symbols in architecture.roles.values():
        shape = [size_of(symbol, SIZES) for symbol in symbols]
        for i in range(settings.layers) if "{i}" in names[0] else [0]:
            for e in range(settings.experts) if "{e}" in names[0] else [0]:
                for j in range(config["vision_backbone"]["image_num_layers"]) if "{j}" in names[0] else [0]:
                    shard = f"model-{i + 1:05}.safetensors"
                    groups.setdefault(shard, []).append((names[0].format(i=i, e=e, j=j), shape))
    weight_map = {}
    places = np.random.default_rng(1)
    for shard, tensors in groups.items():
        header: dict[str, Any] = {}
        at = 0
        for name, shape in tensors:
            size = int(np.prod(shape)) * 2
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            weight_map[name], at = shard, at + size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with (directory / shard).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, shape in tensors:
                count = int(np.prod(shape))
                values = np.ones(count, np.float32)
                if len(shape) > 1:
                    start = int(places.integers(0, len(table)))
                    values = _run(table, start, count) / np.sqrt(shape[-1], dtype=np.float32)
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    (directory / "config.json").write_text(json.dumps(config))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (DEFAULT / name).is_file():
            (directory / name).write_bytes((DEFAULT / name).read_bytes())
    return directory


def _run(table: np.ndarray, start: int, count: int) -> np.ndarray:
    """`count` values of a table that begins again at its end."""
    repeated = np.concatenate([table[start:], *[table] * (count // len(table) + 1)])
    found: np.ndarray = repeated[:count]
    return found


def bench_streamed(work: Path) -> dict[str, Any]:
    """All 16 ablations of the full-size model in one pass over its 14.4 GB, in a process of its own."""
    model = write_noise_molmoe(work / "noise")
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    Image.fromarray(noise).save(work / "noise" / "picture.png")
    rows = [
        {"id": str(n), "image": "picture.png", "prompt": prompt, "answers": ["red"]}
        for n, prompt in enumerate(("What colour is it?", "How many are there?"))
    ]
    (work / "noise" / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [
        sys.executable, "-m", "export.command.main", "score", str(model), "--data", str(model / "data.jsonl"),
        "--tokens", "432",
        "--metric", "nll", "--stream", "--json", "--out", str(work / "noise-scores.json"),
    ]  # fmt: skip
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.02)
        out, error = process.communicate()
    if process.returncode:
        raise SystemExit(error)
    seconds = time.perf_counter() - start
    found = json.loads(out)
    size = sum(tensor.nbytes for tensor in read_checkpoint(model).tensors.values())
    return {
        "checkpoint_bytes": size,
        "bytes_requested": found["engine"]["bytes_read"],
        "bytes_ratio": round(found["engine"]["bytes_read"] / size, 3),
        "block_evaluations": found["engine"]["block_evaluations"],
        "seconds": round(seconds),
        "peak_anonymous_mb": round(peak / 2**20),
        "bar": "bytes_ratio <= 1.1, peak_anonymous_mb <= 4096",
    }


def _anonymous(pid: int) -> int:
    """Resident bytes of a process that no file stands behind."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def bars(work: Path, runs: int, quick: bool) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name and measurement, in order."""
    found: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("sweep_16_blocks", lambda: bench_sweep(runs)),
        ("sweep_16_tokens_a_call", lambda: bench_stacked(runs)),
        ("exact_all_sets", bench_exact),
        ("exact_embedded_4_of_14", bench_embedded),
    ]
    return found if quick else [*found, ("score_full_size_streamed", lambda: bench_streamed(work))]
