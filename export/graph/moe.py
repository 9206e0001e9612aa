"""The mixture of experts in the per-expert form that any onnxruntime runs.

Slots (token, rank) are sorted by expert and cut into one run per expert, possibly empty, so that the work is
proportional to k. An expert whose weights are 16 bits sits in an `If` that widens them only when a token needs it.

n tokens, k experts per token, E experts, d hidden width.
"""

import numpy as np

from export.graph.builder import Graph
from transform.checkpoint import Checkpoint


def mixture(g: Graph, checkpoint: Checkpoint, i: int, x: str) -> str:
    """Block i's experts on x [n, d] (already normed) -> [n, d]."""
    settings = checkpoint.settings
    k, experts = settings.top_k[i], settings.experts
    probabilities = g.op("Softmax", g.linear(x, checkpoint.tensor("router", i)), axis=-1)  # over all experts
    weights, chosen = g.ops("TopK", 2, probabilities, g.ints(k), axis=-1)  # [n, k]
    if settings.norm_top_k:
        weights = g.op("Div", weights, g.op("ReduceSum", weights, g.ints(-1), keepdims=1))

    slots = g.op("Reshape", chosen, g.ints(-1))  # [n*k]
    count = g.op("Shape", slots)
    order = g.ops("TopK", 2, slots, count, largest=0)[1]
    inverse = g.ops("TopK", 2, order, count, largest=0)[1]
    zeros = g.constant(np.zeros(experts, np.int64))
    ones = g.op("Expand", g.ints(1), count)
    sizes = g.op("ScatterElements", zeros, slots, ones, axis=0, reduction="add")  # [E]
    rows = g.op("Gather", x, g.op("Div", order, g.int(k)), axis=0)  # [n*k, d]
    runs = g.ops("Split", experts, rows, sizes, axis=0)

    used = g.op("Greater", sizes, g.int(0))
    outputs = [_expert(g, checkpoint, i, e, run, used) for e, run in enumerate(runs)]
    result = g.op("Gather", g.op("Concat", *outputs, axis=0), inverse, axis=0)
    result = g.op("Reshape", result, g.ints(-1, k, settings.hidden))  # [n, k, d]
    weighted = g.op("Mul", result, g.op("Unsqueeze", weights, g.ints(2)))
    return g.op("ReduceSum", weighted, g.ints(1), keepdims=0)


def _expert(g: Graph, checkpoint: Checkpoint, i: int, e: int, run: str, used: str) -> str:
    """Expert e on its run of rows: down(silu(gate x) * (up x))."""
    gate, up, down = (checkpoint.tensor(f"expert.{part}", i, e) for part in ("gate", "up", "down"))

    def compute() -> str:
        gated = g.linear(run, gate)
        gated = g.op("Mul", gated, g.op("Sigmoid", gated))
        return g.linear(g.op("Mul", gated, g.linear(run, up)), down)

    if {gate.stored, up.stored, down.stored} == {"F32"}:
        return compute()
    for tensor in (gate, up, down):
        g.stored(tensor)  # initializers belong to the outer graph, or the branch would hide them from the tools
    return g.choose(g.op("Gather", used, g.int(e)), compute, lambda: g.op("Identity", run))
