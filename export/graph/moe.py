"""The mixture of experts: one fused operator where the form has one, else the per-expert form that runs anywhere.

Per expert: slots (token, rank) are sorted by expert and cut into one run per expert, possibly empty, so that the work
is proportional to k. 16-bit weights are widened only when a token needs them: experts that lie back to back are taken
one after another in a `Loop`, others sit in an `If` each.

n tokens, k experts per token, E experts, d hidden width.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from export.graph.activation import expert_activation, silu
from export.graph.builder import CONTRIB, Graph
from export.graph.expert_loop import find_spans, looped_experts, looped_slabs
from export.graph.router import is_native, log_weights, route
from transform.architectures.graph_facts import Activation, DecoderGraph, GateUp, Scores
from transform.checkpoint import Checkpoint, Tensor
from transform.experts import (
    Expert,
    TurnedExpert,
    experts_of,
    first_weight,
    in_slabs,
    inner_width,
    is_turned,
    turned_experts_of,
)

# Gate and up rows in turns; the plain activation, which has other factors by default.
SWIGLU: Mapping[str, str | int | float] = {
    "activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0
}  # fmt: skip


def mixture(g: Graph, checkpoint: Checkpoint, i: int, x: str) -> str:
    """Block i's experts on x [n, d] (already normed) -> [n, d]."""
    logits = g.linear(x, checkpoint.tensor("router", i), checkpoint.find("router.bias", i))  # [n, E]
    quantised = first_weight(checkpoint, i).pack is not None
    if not (quantised or g.fused):
        return _per_expert(g, checkpoint, i, x, *_routed(g, checkpoint, i, logits))
    compute = _quantised if quantised else _fused
    routing = checkpoint.graph.routing
    if is_native(routing, checkpoint.find("router.correction", i)):
        return compute(g, checkpoint, i, x, logits, routing.renormalise or routing.scores is Scores.CHOSEN)
    logits = g.wide(logits)
    logits, total = log_weights(g, logits, *_routed(g, checkpoint, i, logits))
    return g.op("Mul", compute(g, checkpoint, i, x, logits, True), total)


def _routed(g: Graph, checkpoint: Checkpoint, i: int, logits: str) -> tuple[str, str]:
    settings = checkpoint.settings
    correction = checkpoint.find("router.correction", i)
    return route(g, checkpoint.graph.routing, logits, settings.top_k[i], settings.experts_of[i], correction)


def _fused(g: Graph, checkpoint: Checkpoint, i: int, x: str, logits: str, normalise: bool) -> str:
    """`MoE` on stacks of experts that lie back to back; the operator takes the softmax itself, over all.

    Gate and up rows take turns, which runtimes arrange once, at load. On a GPU the operator's other orders are wrong:
    of its kernels, chosen by speed, some take the one half for the gate and some the other, and matrices apart are
    copied together at every call.
    """
    bias = _biases(g, checkpoint, i)
    gate_up, down = (_slabs_in_turns if in_slabs(checkpoint, i) else _stacks_in_turns)(g, checkpoint, i)
    operands = [x, logits, gate_up, bias["gate_up"], down, *filter(None, [bias["down_slab"]])]
    return g.op(
        "MoE", *operands,
        domain=CONTRIB, k=checkpoint.settings.top_k[i], normalize_routing_weights=int(normalise),
        **_swiglu(checkpoint.graph),
    )  # fmt: skip


def _stacks_in_turns(g: Graph, checkpoint: Checkpoint, i: int) -> tuple[str, str]:
    """[E, 2I, d] and [E, d, I] of experts with matrices of their own."""
    experts = experts_of(checkpoint, i)
    count, inner = len(experts), experts[0].gate.shape[0]
    gates_and_ups = [getattr(expert, part) for part in ("gate", "up") for expert in experts]
    both, down = g.stack(gates_and_ups, flat=True), g.stack([expert.down for expert in experts])
    return _in_turns(g, both, count, inner, inner, count * inner), down


def _slabs_in_turns(g: Graph, checkpoint: Checkpoint, i: int) -> tuple[str, str]:
    """The same of slabs, whatever their order and orientation."""
    gate_up, down = (checkpoint.tensor(f"expert.{part}", i) for part in ("gate_up", "down_slab"))
    count, inner, width = checkpoint.settings.experts_of[i], inner_width(checkpoint, i), checkpoint.settings.hidden
    apart = checkpoint.graph.gate_up is GateUp.STACKED
    if not is_turned(checkpoint, i):
        if not apart:
            return g.stored(gate_up), g.stored(down)
        rows = g.stored(gate_up._replace(name=f"{gate_up.name}.rows", shape=(count * 2 * inner, width)))
        return _in_turns(g, rows, count, inner, 2 * inner, inner), g.stored(down)
    stacked, downs = (g.op("Transpose", g.stored(slab), perm=[0, 2, 1]) for slab in (gate_up, down))
    if apart:
        rows = g.op("Reshape", stacked, g.ints(-1, width))
        stacked = _in_turns(g, rows, count, inner, 2 * inner, inner)
    return stacked, downs


def _in_turns(g: Graph, rows: str, count: int, inner: int, next_expert: int, up: int) -> str:
    """[E, 2I, d] of rows [2EI, d]; `next_expert`: how many rows on the next one's gate is, `up`: a gate row's up row.

    Rows by their numbers: whatever moves an axis takes a runtime twice as long and twice the memory.
    """
    first = g.constant(next_expert * np.arange(count)[:, None, None])
    turns = g.constant(np.arange(inner)[:, None] + np.array([0, up]))
    return g.op("Gather", rows, g.op("Reshape", g.op("Add", first, turns), g.ints(count, 2 * inner)), axis=0)


def _quantised(g: Graph, checkpoint: Checkpoint, i: int, x: str, logits: str, normalise: bool) -> str:
    """`QMoE` on packed experts, gate and up in alternating rows.

    It renormalises the chosen weights whatever it is told, unless all of them are given as `router_weights`.
    """
    parts = ("gate_up", "down_slab") if in_slabs(checkpoint, i) else ("gate", "down")
    gate_up, down = (checkpoint.tensor(f"expert.{part}", i).pack for part in parts)
    assert gate_up is not None and down is not None
    operands = [x, logits]
    for pack, bias in zip((gate_up, down), _biases(g, checkpoint, i).values(), strict=True):
        operands += [g.stored(pack.codes), g.stored(pack.scales), bias]
    if not normalise:
        operands += [""] * (14 - len(operands)) + [g.op("Softmax", logits, axis=-1)]
    # an attribute as of onnxruntime 1.31, and absent where it would change nothing: 8 bits are always multiplied so
    accuracy = {"accuracy_level": 4} if g.accuracy == 4 and gate_up.bits == 4 else {}
    return g.op(
        "QMoE", *operands,
        domain=CONTRIB, k=checkpoint.settings.top_k[i], expert_weight_bits=gate_up.bits, block_size=gate_up.block,
        normalize_routing_weights=int(normalise), **_swiglu(checkpoint.graph), **accuracy,
    )  # fmt: skip


def _swiglu(facts: DecoderGraph) -> Mapping[str, str | int | float]:
    """The attributes of an operator whose experts have gate and up rows in turns."""
    if facts.activation is Activation.SILU:
        return SWIGLU
    limit = {"swiglu_limit": facts.limit} if math.isfinite(facts.limit) else {}
    return {**SWIGLU, "activation_alpha": facts.alpha, "activation_beta": 1.0, **limit}


def _biases(g: Graph, checkpoint: Checkpoint, i: int) -> dict[str, str]:
    """Of slabs: [E, 2I] in the order of their columns and [E, d]; empty where there are none."""
    found = {part: checkpoint.find(f"expert.{part}.bias", i) for part in ("gate_up", "down_slab")}
    return {part: "" if bias is None else g.weight(bias) for part, bias in found.items()}


def _per_expert(g: Graph, checkpoint: Checkpoint, i: int, x: str, weights: str, chosen: str) -> str:
    experts: Sequence[Expert | TurnedExpert]
    if is_turned(checkpoint, i):
        experts = turned_experts_of(checkpoint, i)
        if not _are_wide(experts):
            return looped_slabs(g, checkpoint, i, x, weights, chosen)
    else:
        experts = apart = experts_of(checkpoint, i)
        spans = None if _are_wide(apart) else find_spans(apart)
        if spans is not None:
            return looped_experts(g, apart, spans, x, weights, chosen)
    return _experts_by_node(g, checkpoint, i, experts, x, weights, chosen)


def _are_wide(experts: Sequence[Expert | TurnedExpert]) -> bool:
    """Whether all are stored in float32, to be read in place."""
    return {tensor.stored for expert in experts for tensor in expert} == {"F32"}


def _experts_by_node(
    g: Graph,
    checkpoint: Checkpoint,
    i: int,
    experts: Sequence[Expert | TurnedExpert],
    x: str,
    weights: str,
    chosen: str,
) -> str:
    """Nodes of its own for every expert."""
    settings = checkpoint.settings
    k, count_of_experts = settings.top_k[i], len(experts)
    slots = g.op("Reshape", chosen, g.ints(-1))  # [n*k]
    count = g.op("Shape", slots)
    order = g.ops("TopK", 2, slots, count, largest=0)[1]
    inverse = g.ops("TopK", 2, order, count, largest=0)[1]
    zeros = g.constant(np.zeros(count_of_experts, np.int64))
    ones = g.op("Expand", g.ints(1), count)
    sizes = g.op("ScatterElements", zeros, slots, ones, axis=0, reduction="add")  # [E]
    rows = g.op("Gather", x, g.op("Div", order, g.int(k)), axis=0)  # [n*k, d]
    runs = g.ops("Split", count_of_experts, rows, sizes, axis=0)

    used: list[str | None] = [None] * count_of_experts
    if not _are_wide(experts):
        # cut once: a Gather per expert costs more at every token, and a pass of onnxruntime's over the graph at load
        some = g.op("Greater", sizes, g.int(0))
        used = [*g.ops("Split", count_of_experts, some, axis=0, num_outputs=count_of_experts)]  # [1] each
    biases = [checkpoint.find(f"expert.{part}.bias", i) for part in ("gate_up", "down_slab")]
    outputs = [
        _expert(g, checkpoint.graph, expert, [bias and bias.view(e) for bias in biases], run, used[e])
        for e, (expert, run) in enumerate(zip(experts, runs, strict=True))
    ]
    result = g.op("Gather", g.op("Concat", *outputs, axis=0), inverse, axis=0)
    result = g.op("Reshape", result, g.ints(-1, k, settings.hidden))  # [n, k, d]
    weighted = g.op("Mul", result, g.op("Unsqueeze", weights, g.ints(2)))
    return g.op("ReduceSum", weighted, g.ints(1), keepdims=0)


def _expert(
    g: Graph,
    facts: DecoderGraph,
    expert: Expert | TurnedExpert,
    biases: Sequence[Tensor | None],
    run: str,
    used: str | None,
) -> str:
    """One expert on its run of rows: down(silu(gate x) * (up x)), or what else it makes of gate and up."""

    def compute() -> str:
        if isinstance(expert, TurnedExpert):
            both = g.linear(run, expert.gate_up, biases[0], turned=True)
            return g.linear(expert_activation(g, facts, both), expert.down, biases[1], turned=True)
        gated = silu(g, g.linear(run, expert.gate))
        return g.linear(g.op("Mul", gated, g.linear(run, expert.up)), expert.down)

    if used is None:
        return compute()
    for tensor in (*expert, *biases):
        if tensor is not None:
            g.stored(tensor)  # initializers belong to the outer graph, or the branch would hide them from the tools
    return g.choose(used, compute, lambda: g.op("Identity", run))
