"""The bars of the graphs: time follows k, a decoder costs what its parts cost, and neither PyTorch is faster.

MolmoE's real widths (2048, 64 experts of 1024), weights of noise, one thread on every side. Contestants take turns,
token by token, with another token each time: a repeated one would find its experts in the cache.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from export.graph import expert_loop
from export.graph.attention import attention
from export.graph.builder import FLOAT, INT64, Graph
from export.graph.context import attention_context
from export.graph.decoder import text_graph
from export.graph.moe import mixture
from export.graph.norm import rms_norm
from export.run.session import open_session
from export.run.session_options import session_options
from tests.support.paths import ROOT
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.forms import form_named
from transform.load import load_model
from transform.molmoe.compatibility import CACHE
from transform.packed import write_packed
from transform.packed_layout import packing_for
from transform.read import read_checkpoint
from transform.top_k import set_top_k

WIDTH, EXPERT, EXPERTS, VOCAB = 2048, 1024, 64, 50304
PAST, STEPS, PREFILL = 64, 60, 512
Job = Callable[[int], object]  # a contestant's n-th turn


def write_noise_olmoe(directory: Path, layers: int, narrow: bool = False) -> Path:
    """A float32 OLMoE of noise (1.7 GB per block), or a `narrow` one in bfloat16: matrices of 1/sqrt(width)."""
    kind, item = ("BF16", 2) if narrow else ("F32", 4)
    config = {
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "vocab_size": VOCAB, "hidden_size": WIDTH,
        "intermediate_size": EXPERT, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_experts": EXPERTS, "num_experts_per_tok": 8, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "norm_topk_prob": False, "clip_qkv": None, "hidden_act": "silu",
        "attention_bias": False, "tie_word_embeddings": False, "dtype": "bfloat16" if narrow else "float32",
    }  # fmt: skip
    table: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH),
    }  # fmt: skip
    for i in range(layers):
        block = f"model.layers.{i}."
        table |= {f"{block}self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"}
        norms = ("self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm")
        table |= {f"{block}{part}.weight": (WIDTH,) for part in norms}
        table[f"{block}mlp.gate.weight"] = (EXPERTS, WIDTH)
        for e in range(EXPERTS):
            expert = f"{block}mlp.experts.{e}."
            table |= {f"{expert}{part}_proj.weight": (EXPERT, WIDTH) for part in ("gate", "up")}
            table[f"{expert}down_proj.weight"] = (WIDTH, EXPERT)
    header: dict[str, Any] = {}
    at = 0
    for name, shape in table.items():
        size = int(np.prod(shape)) * item
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * ((-8 - len(text)) % 4096)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(1 << 25, np.float32)
    directory.mkdir(parents=True)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in table.values():
            left = int(np.prod(shape))
            scale = np.float32(1 / np.sqrt(shape[-1]))
            while left:
                count = min(left, 1 << 24)
                start = int(rng.integers(0, len(noise) - count + 1))
                values = noise[start : start + count] * scale if len(shape) > 1 else np.ones(count, np.float32)
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes() if narrow else values.tobytes())
                left -= count
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def take_turns(jobs: Mapping[Any, Job], turns: int, warm_up: int) -> dict[Any, float]:
    """Median milliseconds of each contestant; every turn all of them run."""
    found: dict[Any, list[float]] = {name: [] for name in jobs}
    for turn in range(-warm_up, turns):
        for name, job in jobs.items():
            start = time.perf_counter()
            job(turn)
            if turn >= 0:
                found[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in found.items()}


class Setup:
    """One directory per form; graphs over its weights, opened with one thread."""

    def __init__(self, work: Path, layers: int) -> None:
        source = write_noise_olmoe(work / f"olmoe-{layers}", layers)
        packed = work / f"olmoe-{layers}-int4"
        packed.mkdir()
        floats = read_checkpoint(source)
        packing = packing_for(form_named("int4"), floats)
        assert packing is not None
        write_packed(floats, packed, packing)
        self.directories = {"cpu": source, "int4": packed}
        self.tokens = np.random.default_rng(1).integers(0, VOCAB, (STEPS + 8, 1))

    def checkpoint(self, form: str, k: int) -> Checkpoint:
        """The weights of a form with another k."""
        return set_top_k(read_checkpoint(self.directories[form]), k)

    def open(self, form: str, graph: Graph, name: str) -> Any:
        """A session on a graph."""
        path = self.directories[form] / name
        graph.write(path)
        return open_session(path, session_options(form_named(form)), threads=1)


def moe_graph(checkpoint: Checkpoint, form: str) -> Graph:
    """The experts of block 0 alone."""
    g = Graph("moe", form_named(form))
    x = g.input("x", FLOAT, ["n", WIDTH])
    g.output("y", mixture(g, checkpoint, 0, x), FLOAT, ["n", WIDTH])
    return g


def _feeder(session: Any, inputs: Array) -> Job:
    """One run per turn, on the turn's input; from the first again after the last."""
    return lambda turn: session.run(None, {"x": inputs[turn % len(inputs)]})


def bench_moe(setup: Setup, form: str, runs: int) -> dict[str, Any]:
    """Milliseconds of one MoE layer for k = 8, 4, 2: one token, and 512."""
    sessions = {k: setup.open(form, moe_graph(setup.checkpoint(form, k), form), f"moe-{k}.onnx") for k in (8, 4, 2)}
    rng = np.random.default_rng(2)
    singles = rng.standard_normal((STEPS + 8, 1, WIDTH)).astype(np.float32)
    many = rng.standard_normal((PREFILL, WIDTH)).astype(np.float32)
    decode = take_turns({k: _feeder(session, singles) for k, session in sessions.items()}, STEPS, 8)
    prefill = take_turns({k: _feeder(session, many[None]) for k, session in sessions.items()}, runs, 1)
    return {
        **{f"decode_k{k}_ms": round(value, 2) for k, value in decode.items()},
        **{f"prefill_{PREFILL}_k{k}_ms": round(value, 1) for k, value in prefill.items()},
        "decode_k8_over_k4": round(decode[8] / decode[4], 2),
        "decode_k4_over_k2": round(decode[4] / decode[2], 2),
        "prefill_k8_over_k4": round(prefill[8] / prefill[4], 2),
        "bar": "decode_k8_over_k4 >= 1.7, decode_k4_over_k2 >= 1.6, prefill_k8_over_k4 >= 1.5",
    }


def bench_looped_experts(work: Path, runs: int) -> dict[str, Any]:
    """One MoE layer in 16 bits, k = 8: a loop over the experts that are used, against nodes of each one's own."""
    directory = write_noise_olmoe(work / "olmoe-narrow", 1, narrow=True)
    checkpoint = set_top_k(read_checkpoint(directory), 8)
    sessions: dict[str, Any] = {}
    memory = {}
    for name, spans in (("loop", expert_loop.MOST_SPANS), ("nodes", 0)):
        with mock.patch.object(expert_loop, "MOST_SPANS", spans):
            moe_graph(checkpoint, "cpu").write(directory / f"{name}.onnx")
        sessions[name] = open_session(directory / f"{name}.onnx", session_options(form_named("cpu")), threads=1)
        for way, load in (("io_json", LOAD), ("default", LOAD_PLAIN)):
            memory[f"{name}_{way}_anonymous_mb"] = load_memory(load, directory / f"{name}.onnx")
    rng = np.random.default_rng(2)
    singles = rng.standard_normal((STEPS + 8, 1, WIDTH)).astype(np.float32)
    many = rng.standard_normal((1, PREFILL, WIDTH)).astype(np.float32)
    decode = take_turns({name: _feeder(session, singles) for name, session in sessions.items()}, STEPS, 8)
    prefill = take_turns({name: _feeder(session, many) for name, session in sessions.items()}, runs, 1)
    shutil.rmtree(directory)
    return {
        **{f"decode_{name}_ms": round(value, 2) for name, value in decode.items()},
        **{f"prefill_{PREFILL}_{name}_ms": round(value, 1) for name, value in prefill.items()},
        **memory,
        "decode_ratio": round(decode["loop"] / decode["nodes"], 2),
        "prefill_ratio": round(prefill["loop"] / prefill["nodes"], 2),
        "bar": "decode_ratio <= 1.0, prefill_ratio <= 1.0, loop_*_anonymous_mb <= 200",
    }


def part_graphs(checkpoint: Checkpoint, form: str) -> dict[str, Graph]:
    """What a decoder is made of, block 0 standing for all: attention half, experts half, head."""
    settings = checkpoint.settings
    size = [settings.kv_heads, settings.head_dim]
    first = Graph("attention", form_named(form))
    given = first.input("x", FLOAT, ["batch", "sequence", WIDTH])
    mask = first.input("attention_mask", INT64, ["batch", "total"])
    past = [first.input(f"past.{part}", FLOAT, ["batch", size[0], "past", size[1]]) for part in ("key", "value")]
    context = attention_context(
        first, settings, checkpoint.graph.rope, settings.windows, first.op("Shape", given, start=0, end=2), mask
    )
    x = first.op("Reshape", given, first.ints(-1, WIDTH))
    normed = rms_norm(first, x, checkpoint.tensor("attention.norm", 0), settings.eps)
    mixed, keys, values = attention(first, checkpoint, checkpoint.graph, 0, normed, context, (past[0], past[1]))
    first.output("y", first.op("Add", x, mixed), FLOAT, ["n", WIDTH])
    for part, value in (("key", keys), ("value", values)):
        first.output(f"present.{part}", value, FLOAT, ["batch", size[0], "total", size[1]])
    second = Graph("experts", form_named(form))
    x = second.input("x", FLOAT, ["n", WIDTH])
    normed = rms_norm(second, x, checkpoint.tensor("mlp.norm", 0), settings.eps)
    second.output("y", second.op("Add", x, mixture(second, checkpoint, 0, normed)), FLOAT, ["n", WIDTH])
    third = Graph("head", form_named(form))
    x = third.input("x", FLOAT, ["n", WIDTH])
    logits = third.linear(rms_norm(third, x, checkpoint.tensor("norm"), settings.eps), checkpoint.tensor("head"))
    third.output("y", logits, FLOAT, ["n", VOCAB])
    return {"attention": first, "experts": second, "head": third}


def decoder_job(session: Any, layers: int, tokens: Array) -> Job:
    """One decode step after PAST cached tokens."""
    rng = np.random.default_rng(3)
    size = (1, 16, PAST, WIDTH // 16)
    cache = {
        f"past_key_values.{i}.{part}": rng.standard_normal(size).astype(np.float32)
        for i in range(layers)
        for part in ("key", "value")
    }
    feed = {"attention_mask": np.ones((1, PAST + 1), np.int64), **cache}
    return lambda n: session.run(None, {"input_ids": tokens[n][None], **feed})


def bench_parts(setup: Setup, form: str, layers: int) -> dict[str, Any]:
    """A decode step of the whole decoder against its parts, measured alone."""
    checkpoint = setup.checkpoint(form, 8)
    rng = np.random.default_rng(4)
    singles = rng.standard_normal((STEPS + 8, 1, WIDTH)).astype(np.float32)
    past = rng.standard_normal((1, 16, PAST, WIDTH // 16)).astype(np.float32)
    around = {"attention_mask": np.ones((1, PAST + 1), np.int64), "past.key": past, "past.value": past}
    sessions = {name: setup.open(form, graph, f"{name}.onnx") for name, graph in part_graphs(checkpoint, form).items()}
    whole = setup.open(form, text_graph(checkpoint, form_named(form)), "whole.onnx")
    found = take_turns(
        {
            "whole": decoder_job(whole, layers, setup.tokens),
            "attention": lambda n: sessions["attention"].run(None, {"x": singles[n][None], **around}),
            "experts": lambda n: sessions["experts"].run(None, {"x": singles[n]}),
            "head": lambda n: sessions["head"].run(None, {"x": singles[n]}),
        },
        STEPS,
        8,
    )
    parts = layers * (found["attention"] + found["experts"]) + found["head"]
    return {
        "blocks": layers,
        **{f"{name}_ms": round(value, 2) for name, value in found.items()},
        "whole_over_parts": round(found["whole"] / parts, 3),
        "bar": "whole_over_parts <= 1.15",
    }


def torch_job(model: Any, layers: int, tokens: Array) -> Job:
    """The same step in PyTorch: the cache is cropped back after every turn."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    generator = torch.Generator().manual_seed(3)
    for i in range(layers):
        cache.update(*torch.randn((2, 1, 16, PAST, WIDTH // 16), generator=generator), i)

    @torch.no_grad()
    def step(n: int) -> object:
        mask = torch.ones(1, PAST + 1, dtype=torch.int64)
        ids = torch.from_numpy(tokens[n][None])
        logits = model(input_ids=ids, attention_mask=mask, **{CACHE: cache}).logits
        cache.crop(-1)
        return logits

    return step


def bench_against_torch(setup: Setup, layers: int, ks: Sequence[int] = (8, 4)) -> dict[str, Any]:
    """Decode of the graphs against PyTorch's grouped_mm, all on one thread."""
    from transform.runtime import set_moe_top_k

    torch.set_num_threads(1)
    model = load_model(setup.directories["cpu"], experts_implementation="grouped_mm")
    found: dict[str, Any] = {"blocks": layers}
    for k in ks:
        set_moe_top_k(model, k)
        jobs: dict[str, Job] = {"torch": torch_job(model, layers, setup.tokens)}
        for form in setup.directories:
            session = setup.open(form, text_graph(setup.checkpoint(form, k), form_named(form)), f"text-{k}.onnx")
            jobs[form] = decoder_job(session, layers, setup.tokens)
        times = take_turns(jobs, STEPS, 8)
        found |= {f"{name}_k{k}_ms": round(value, 2) for name, value in times.items()}
        found |= {f"{form}_over_torch_k{k}": round(times[form] / times["torch"], 2) for form in setup.directories}
    return found | {"bar": "cpu_over_torch* <= 1.0, int4_over_torch* <= 0.6"}


LOAD = """
import json, sys
from pathlib import Path
from export.run.session_options import session_options
from export.run.session import open_session
from transform.forms import REFERENCE
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
import onnxruntime
before = anonymous()
session = open_session(Path(sys.argv[1]), session_options(REFERENCE), threads=1)
print(anonymous() - before)
"""


LOAD_PLAIN = LOAD.replace(
    "open_session(Path(sys.argv[1]), session_options(REFERENCE), threads=1)",
    'onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])',
)


def load_memory(program: str, path: Path) -> float:
    """Anonymous MB that opening a graph takes, in a process of its own."""
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return round(int(done.stdout) / 1e6, 1)


def bench_load(setup: Setup) -> dict[str, Any]:
    """What opening a session on one real layer takes beside the mapped file."""
    path = setup.directories["cpu"] / "load.onnx"
    moe_graph(setup.checkpoint("cpu", 8), "cpu").write(path)
    weights = 3 * EXPERTS * WIDTH * EXPERT * 4
    return {
        "weight_mb": round(weights / 1e6),
        "anonymous_mb": load_memory(LOAD, path),
        "bar": "anonymous_mb <= 200",
    }


def bars(work: Path, runs: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py; the checkpoints of noise are made when the first bar needs them."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    made: dict[int, Setup] = {}

    def setup(layers: int) -> Setup:
        if layers not in made:
            made[layers] = Setup(work, layers)
        return made[layers]

    return [
        ("moe_layer_cpu", lambda: bench_moe(setup(2), "cpu", runs)),
        ("moe_layer_int4", lambda: bench_moe(setup(2), "int4", runs)),
        ("moe_layer_16_bits", lambda: bench_looped_experts(work, runs)),
        ("decoder_and_parts_cpu", lambda: bench_parts(setup(2), "cpu", 2)),
        ("decoder_and_parts_int4", lambda: bench_parts(setup(2), "int4", 2)),
        ("decode_against_pytorch", lambda: bench_against_torch(setup(2), 2)),
        ("session_load", lambda: bench_load(setup(2))),
    ]
