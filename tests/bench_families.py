"""The bars of families as data: graphs of Qwen3-30B-A3B's layout from headers alone, and its widths' work by k."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from export.graph.builder import FLOAT, Graph
from export.graph.feed_forward import feed_forward
from export.run.session import open_session
from export.run.session_options import session_options
from tests.bench_onnx import take_turns
from tests.support.full_size import released_config, write_sparse, write_sparse_molmoe
from tests.support.paths import FIXTURES, ROOT
from transform.checkpoint import Checkpoint
from transform.forms import form_named
from transform.packed import write_packed
from transform.packed_layout import packing_for
from transform.read import read_checkpoint
from transform.top_k import set_top_k

QWEN3_30B: Mapping[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False, "head_dim": 128,
    "decoder_sparse_step": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
    "max_position_embeddings": 40960, "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True,
    "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000.0,
    "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
    "bos_token_id": 151643, "eos_token_id": 151645,
}  # fmt: skip
STEPS = 40
# A process of its own per checkpoint, imports and all.
EMIT = """
import json, re, sys, time
from pathlib import Path
from export.graph.emit import emit_graphs
from transform.forms import REFERENCE
from transform.read import read_checkpoint
directory = Path(sys.argv[1])
files = emit_graphs(read_checkpoint(directory), directory, None, REFERENCE)
print(json.dumps({
    "processor_seconds": time.process_time(),
    "peak_bytes": int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024,
    "file_bytes": sum(file.stat().st_size for file in files),
}))
"""


def qwen3_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as released: a tensor per expert."""
    width, inner, head = config["hidden_size"], config["moe_intermediate_size"], config["head_dim"]
    wide, narrow = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    table: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}."
        table |= {
            f"{block}self_attn.{part}_proj.weight": (rows, width)
            for part, rows in zip("qkv", (wide, narrow, narrow), strict=True)
        }
        table[f"{block}self_attn.o_proj.weight"] = (width, wide)
        table |= {f"{block}self_attn.{part}_norm.weight": (head,) for part in "qk"}
        table |= {f"{block}{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
        table[f"{block}mlp.gate.weight"] = (config["num_experts"], width)
        for e in range(config["num_experts"]):
            expert = f"{block}mlp.experts.{e}."
            table |= {f"{expert}{part}_proj.weight": (inner, width) for part in ("gate", "up")}
            table[f"{expert}down_proj.weight"] = (width, inner)
    return table | {"model.norm.weight": (width,), "lm_head.weight": (config["vocab_size"], width)}


def bench_emission(work: Path, kind: str) -> dict[str, Any]:
    """Graphs of both full-size layouts in turns, by their headers; the best of each one's runs."""
    names = {"molmoe": work / f"sparse-molmoe-{kind}", "qwen3": work / f"sparse-qwen3-{kind}"}
    write_sparse_molmoe(names["molmoe"], released_config(FIXTURES), kind)
    write_sparse(names["qwen3"], QWEN3_30B, qwen3_tensors(QWEN3_30B), kind)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    measured: dict[str, Any] = {}
    for _ in range(3):
        for name, directory in names.items():
            command = [sys.executable, "-c", EMIT, str(directory)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            measured = json.loads(done.stdout)
            seconds[name].append(measured["processor_seconds"])
    for directory in names.values():
        shutil.rmtree(directory)
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "processor_seconds": round(best["qwen3"], 2),
        "molmoe_processor_seconds": round(best["molmoe"], 2),
        "ratio": round(best["qwen3"] / best["molmoe"], 2),
        "peak_mb": round(measured["peak_bytes"] / 2**20),
        "file_mb": round(measured["file_bytes"] / 1e6, 2),
        "bar": "ratio <= 5, peak_mb <= 286, file_mb <= 10",
    }


def write_noise_block(directory: Path) -> Path:
    """One block of Qwen3-30B-A3B's widths in bfloat16 noise; the vocabulary is small."""
    config = dict(QWEN3_30B) | {"num_hidden_layers": 1, "vocab_size": 1024}
    write_sparse(directory, config, qwen3_tensors(config), "BF16")
    rng = np.random.default_rng(0)
    checkpoint = read_checkpoint(directory)
    with (directory / "model.safetensors").open("r+b") as file:
        for tensor in checkpoint.tensors.values():
            count = tensor.nbytes // 2
            scale = np.float32(1.0 if len(tensor.shape) == 1 else tensor.shape[-1] ** -0.5)
            values = rng.standard_normal(count, np.float32) * scale
            file.seek(tensor.start)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return directory


def weights_for(work: Path, form: str) -> Path:
    """The noise as a form stores it."""
    source = work / "qwen3-block"
    if not (source / "config.json").is_file():
        write_noise_block(source)
    packing, directory = packing_for(form_named(form), read_checkpoint(source)), work / f"qwen3-block-{form}"
    if packing is None:
        return source
    if not (directory / "config.json").is_file():
        directory.mkdir()
        write_packed(read_checkpoint(source), directory, packing)
    return directory


def bench_work(work: Path, form: str) -> dict[str, Any]:
    """Milliseconds of the experts of one block for k = 8 and 4, one token at a time."""
    directory, width = weights_for(work, form), QWEN3_30B["hidden_size"]
    sessions = {}
    for k in (8, 4):
        path = directory / f"experts-{k}.onnx"
        experts_graph(set_top_k(read_checkpoint(directory), k), form).write(path)
        sessions[k] = open_session(path, session_options(form_named(form)), threads=1)
    singles = np.random.default_rng(2).standard_normal((STEPS + 8, 1, width)).astype(np.float32)

    def job(session: Any) -> Callable[[int], object]:
        return lambda n: session.run(None, {"x": singles[n]})

    times = take_turns({k: job(session) for k, session in sessions.items()}, STEPS, 8)
    return {
        **{f"decode_k{k}_ms": round(value, 2) for k, value in times.items()},
        "decode_k8_over_k4": round(times[8] / times[4], 2),
        "bar": "decode_k8_over_k4 >= 1.6",
    }


def experts_graph(checkpoint: Checkpoint, form: str) -> Graph:
    """What block 0 does behind its attention."""
    g, width = Graph("experts", form_named(form)), checkpoint.settings.hidden
    x = g.input("x", FLOAT, ["n", width])
    g.output("y", feed_forward(g, checkpoint, 0, x), FLOAT, ["n", width])
    return g


def bars(work: Path) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py."""
    return [
        ("families_graphs", partial(bench_emission, work, "BF16")),
        ("families_graphs_float32", partial(bench_emission, work, "F32")),
        *((f"families_experts_{form}", partial(bench_work, work, form)) for form in ("cpu", "int4")),
    ]
