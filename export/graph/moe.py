"""The mixture of experts: one fused operator where the form has one, else the per-expert form that runs anywhere.

Per expert: slots (token, rank) are sorted by expert and cut into one run per expert, possibly empty, so that the work
is proportional to k. 16-bit weights are widened only when a token needs them: experts that lie back to back are taken
one after another in a `Loop`, others sit in an `If` each.

n tokens, k experts per token, E experts, d hidden width.
"""

from collections.abc import Mapping

import numpy as np

from export.graph.builder import CONTRIB, Graph
from export.graph.expert_loop import find_experts, looped_experts
from transform.checkpoint import Checkpoint

# Gate and up rows in turns; the plain activation, which has other factors by default.
SWIGLU: Mapping[str, str | int | float] = {
    "activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0
}  # fmt: skip


def mixture(g: Graph, checkpoint: Checkpoint, i: int, x: str) -> str:
    """Block i's experts on x [n, d] (already normed) -> [n, d]."""
    logits = g.linear(x, checkpoint.tensor("router", i))  # [n, E]
    if checkpoint.tensor("expert.gate", i).pack is not None:
        return _quantised(g, checkpoint, i, x, logits)
    return (_fused if g.fused else _per_expert)(g, checkpoint, i, x, logits)


def _fused(g: Graph, checkpoint: Checkpoint, i: int, x: str, logits: str) -> str:
    """`MoE` on stacks of experts that lie back to back; the operator takes the softmax itself, over all.

    Gate and up rows take turns, which runtimes arrange once, at load. On a GPU the operator's other orders are wrong:
    of its kernels, chosen by speed, some take the one half for the gate and some the other, and matrices apart are
    copied together at every call.
    """
    settings = checkpoint.settings
    every = range(settings.experts)

    def stack(part: str, spread: bool = False) -> str:
        return g.stack([checkpoint.tensor(f"expert.{part}", i, e) for e in every], spread)

    turns = g.op("Concat", stack("gate", spread=True), stack("up", spread=True), axis=2)  # [E, I, 2, d]
    inner, width = checkpoint.tensor("expert.gate", i).shape
    return g.op(
        "MoE", x, logits, g.op("Reshape", turns, g.ints(settings.experts, 2 * inner, width)), "", stack("down"),
        domain=CONTRIB, k=settings.top_k[i], normalize_routing_weights=int(settings.norm_top_k), **SWIGLU,
    )  # fmt: skip


def _quantised(g: Graph, checkpoint: Checkpoint, i: int, x: str, logits: str) -> str:
    """`QMoE` on packed experts, gate and up in alternating rows.

    It renormalises the chosen weights whatever it is told, unless all of them are given as `router_weights`.
    """
    settings = checkpoint.settings
    gate_up, down = (checkpoint.tensor(f"expert.{part}", i).pack for part in ("gate", "down"))
    assert gate_up is not None and down is not None
    operands = [x, logits]
    for pack in (gate_up, down):
        operands += [g.stored(pack.codes), g.stored(pack.scales), ""]
    if not settings.norm_top_k:
        operands += [""] * (14 - len(operands)) + [g.op("Softmax", logits, axis=-1)]
    # an attribute as of onnxruntime 1.31, and absent where it would change nothing: 8 bits are always multiplied so
    accuracy = {"accuracy_level": 4} if g.accuracy == 4 and gate_up.bits == 4 else {}
    return g.op(
        "QMoE", *operands,
        domain=CONTRIB, k=settings.top_k[i], expert_weight_bits=gate_up.bits, block_size=gate_up.block, **SWIGLU,
        normalize_routing_weights=int(settings.norm_top_k), **accuracy,
    )  # fmt: skip


def _per_expert(g: Graph, checkpoint: Checkpoint, i: int, x: str, logits: str) -> str:
    settings = checkpoint.settings
    probabilities = g.op("Softmax", logits, axis=-1)  # over all experts
    weights, chosen = g.ops("TopK", 2, probabilities, g.ints(settings.top_k[i]), axis=-1)  # [n, k]
    if settings.norm_top_k:
        weights = g.op("Div", weights, g.op("ReduceSum", weights, g.ints(-1), keepdims=1))
    experts = None if _is_wide(checkpoint, i) else find_experts(checkpoint, i)
    if experts is not None:
        return looped_experts(g, checkpoint, i, experts, x, weights, chosen)
    return _experts_by_node(g, checkpoint, i, x, weights, chosen)


def _is_wide(checkpoint: Checkpoint, i: int) -> bool:
    """Whether the experts of block i are stored in float32, to be read in place."""
    return {checkpoint.tensor(f"expert.{part}", i).stored for part in ("gate", "up", "down")} == {"F32"}


def _experts_by_node(g: Graph, checkpoint: Checkpoint, i: int, x: str, weights: str, chosen: str) -> str:
    """Nodes of its own for every expert."""
    settings = checkpoint.settings
    k, experts = settings.top_k[i], settings.experts
    slots = g.op("Reshape", chosen, g.ints(-1))  # [n*k]
    count = g.op("Shape", slots)
    order = g.ops("TopK", 2, slots, count, largest=0)[1]
    inverse = g.ops("TopK", 2, order, count, largest=0)[1]
    zeros = g.constant(np.zeros(experts, np.int64))
    ones = g.op("Expand", g.ints(1), count)
    sizes = g.op("ScatterElements", zeros, slots, ones, axis=0, reduction="add")  # [E]
    rows = g.op("Gather", x, g.op("Div", order, g.int(k)), axis=0)  # [n*k, d]
    runs = g.ops("Split", experts, rows, sizes, axis=0)

    used: list[str | None] = [None] * experts
    if not _is_wide(checkpoint, i):
        # cut once: a Gather per expert costs more at every token, and a pass of onnxruntime's over the graph at load
        used = [*g.ops("Split", experts, g.op("Greater", sizes, g.int(0)), axis=0, num_outputs=experts)]  # [1] each
    outputs = [_expert(g, checkpoint, i, e, run, used[e]) for e, run in enumerate(runs)]
    result = g.op("Gather", g.op("Concat", *outputs, axis=0), inverse, axis=0)
    result = g.op("Reshape", result, g.ints(-1, k, settings.hidden))  # [n, k, d]
    weighted = g.op("Mul", result, g.op("Unsqueeze", weights, g.ints(2)))
    return g.op("ReduceSum", weighted, g.ints(1), keepdims=0)


def _expert(g: Graph, checkpoint: Checkpoint, i: int, e: int, run: str, used: str | None) -> str:
    """Expert e on its run of rows: down(silu(gate x) * (up x))."""
    gate, up, down = (checkpoint.tensor(f"expert.{part}", i, e) for part in ("gate", "up", "down"))

    def compute() -> str:
        gated = g.linear(run, gate)
        gated = g.op("Mul", gated, g.op("Sigmoid", gated))
        return g.linear(g.op("Mul", gated, g.linear(run, up)), down)

    if used is None:
        return compute()
    for tensor in (gate, up, down):
        g.stored(tensor)  # initializers belong to the outer graph, or the branch would hide them from the tools
    return g.choose(used, compute, lambda: g.op("Identity", run))
