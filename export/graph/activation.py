"""What an expert makes of its gate and up."""

from export.graph.builder import Graph
from export.graph.context import INT64_MAX
from transform.architectures.graph_facts import Activation, DecoderGraph, GateUp


def silu(g: Graph, x: str) -> str:
    """x sigmoid(x)."""
    return g.op("Mul", x, g.op("Sigmoid", x))


def clamped(g: Graph, facts: DecoderGraph, gate: str, up: str) -> str:
    """(up + 1) * gate * sigmoid(alpha gate), the gate at most `limit`, up within it on both sides."""
    gate = g.op("Min", gate, g.float(facts.limit))
    up = g.op("Clip", up, g.float(-facts.limit), g.float(facts.limit))
    gated = g.op("Mul", gate, g.op("Sigmoid", g.op("Mul", gate, g.float(facts.alpha))))
    return g.op("Mul", g.op("Add", up, g.float(1.0)), gated)


def expert_activation(g: Graph, facts: DecoderGraph, both: str) -> str:
    """Of gate and up in one array [m, 2I]."""
    if facts.gate_up is GateUp.STACKED:
        gate, up = g.ops("Split", 2, both, axis=1, num_outputs=2)
    else:
        gate, up = (g.op("Slice", both, g.ints(at), g.ints(INT64_MAX), g.ints(1), g.ints(2)) for at in (0, 1))
    if facts.activation is Activation.CLAMPED:
        return clamped(g, facts, gate, up)
    return g.op("Mul", gate, g.op("Mul", g.op("Sigmoid", gate), up))
