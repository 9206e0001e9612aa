"""The bar of opening the cuda form's experts: gate and up rows are brought in turns while the graph opens.

As emitted, rows are taken by their numbers; the baseline joins gates and ups along an axis between them (`Concat`) and
drops it again. One block of MolmoE-1B's widths, holes for weights, a process each, in turns. Opened on the CPU, which
arranges them on any machine.
"""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.graph.builder import CONTRIB, FLOAT16, Graph
from export.graph.moe import SWIGLU, mixture
from tests.support.full_size import write_sparse
from tests.support.paths import ROOT
from transform.checkpoint import Checkpoint
from transform.forms import form_named
from transform.read import read_checkpoint

WIDTH, INNER, EXPERTS, TURNS = 2048, 1024, 64, 5
# Not by `open_session`, which refuses the operator on a CPU: there it opens, but some of its results are wrong.
OPEN = """
import json, re, sys, time
from pathlib import Path
import onnxruntime
from export.run.session_options import session_options
from transform.forms import form_named
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
for key, value in session_options(form_named("cuda")).items():
    options.add_session_config_entry(key, value)
before = time.process_time()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
seconds = time.process_time() - before
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps([seconds, peak]))
"""


def sparse_block(directory: Path) -> Checkpoint:
    """An OLMoE of one block, its experts as the cuda form writes them: all gates, all ups, all downs."""
    config = {
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "vocab_size": 64, "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_experts": EXPERTS, "num_experts_per_tok": 8, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "norm_topk_prob": False, "clip_qkv": None, "hidden_act": "silu",
        "attention_bias": False, "tie_word_embeddings": False, "dtype": "float16",
    }  # fmt: skip
    block = "model.layers.0."
    table: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (64, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (64, WIDTH),
    }  # fmt: skip
    table |= {f"{block}self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"}
    norms = ("self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm")
    table |= {f"{block}{norm}.weight": (WIDTH,) for norm in norms}
    table[f"{block}mlp.gate.weight"] = (EXPERTS, WIDTH)
    for part, shape in (("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH)), ("down", (WIDTH, INNER))):
        table |= {f"{block}mlp.experts.{e}.{part}_proj.weight": shape for e in range(EXPERTS)}
    return read_checkpoint(write_sparse(directory, config, table, "F16"))


def joined(g: Graph, checkpoint: Checkpoint, i: int, x: str) -> str:
    """Block i's experts whose gates and ups are joined along an axis."""
    router = g.linear(x, checkpoint.tensor("router", i))
    apart = []
    for part in ("gate", "up"):
        first = checkpoint.tensor(f"expert.{part}", i, 0)
        shape = (EXPERTS, INNER, 1, WIDTH)
        apart.append(g.stored(first._replace(name=f"{first.name}.apart", shape=shape, nbytes=EXPERTS * first.nbytes)))
    down = g.stack([checkpoint.tensor("expert.down", i, e) for e in range(EXPERTS)])
    gate_up = g.op("Reshape", g.op("Concat", *apart, axis=2), g.ints(EXPERTS, 2 * INNER, WIDTH))
    k = checkpoint.settings.top_k[i]
    return g.op("MoE", x, router, gate_up, "", down, domain=CONTRIB, k=k, normalize_routing_weights=0, **SWIGLU)


def bench_turns(work: Path) -> dict[str, Any]:
    """Seconds of a processor to open either graph, and memory at its peak."""
    checkpoint = sparse_block(work / "turns")
    found: dict[str, list[tuple[float, float]]] = {}
    for name, build in (("ours", mixture), ("joined", joined)):
        g = Graph(name, form_named("cuda"))
        g.output("y", build(g, checkpoint, 0, g.input("x", FLOAT16, ["n", WIDTH])), FLOAT16, ["n", WIDTH])
        g.write(checkpoint.path / f"{name}.onnx")
        found[name] = []
    for _ in range(TURNS):
        for name, spent in found.items():
            command = [sys.executable, "-c", OPEN, str(checkpoint.path / f"{name}.onnx")]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            spent.append(tuple(json.loads(done.stdout)))
    shutil.rmtree(checkpoint.path)
    seconds, baseline = (statistics.median(s for s, _ in spent) for spent in found.values())
    peak, baseline_peak = (max(peak for _, peak in spent) for spent in found.values())
    return {
        "seconds": round(seconds, 2),
        "joined_seconds": round(baseline, 2),
        "ratio": round(seconds / baseline, 2),
        "peak_mb": round(peak),
        "joined_peak_mb": round(baseline_peak),
        "bar": "ratio <= 1",
    }


def bars(work: Path) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py."""
    return [("open_experts_cuda", lambda: bench_turns(work))]
