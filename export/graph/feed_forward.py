"""What a block does behind its attention: experts, those that every token has besides, or one dense layer."""

from export.graph.activation import silu
from export.graph.builder import Graph
from export.graph.moe import mixture
from transform.checkpoint import Checkpoint


def feed_forward(g: Graph, checkpoint: Checkpoint, i: int, x: str) -> str:
    """Block i on x [n, d] (already normed) -> [n, d]."""
    if not checkpoint.settings.top_k[i]:
        return _gated(g, checkpoint, "dense", i, x)
    found = mixture(g, checkpoint, i, x)
    if checkpoint.find("shared.down", i) is None:
        return found
    shared = _gated(g, checkpoint, "shared", i, x)
    if (router := checkpoint.find("shared.router", i)) is not None:
        shared = g.op("Mul", g.op("Sigmoid", g.linear(x, router)), shared)
    return g.op("Add", found, shared)


def _gated(g: Graph, checkpoint: Checkpoint, name: str, i: int, x: str) -> str:
    """down(silu(gate x) * (up x)), gate and up in two matrices or one above the other."""

    def linear(part: str, value: str) -> str:
        role = f"{name}.{part}"
        return g.linear(value, checkpoint.tensor(role, i), checkpoint.find(f"{role}.bias", i))

    if checkpoint.find(f"{name}.gate_up", i) is None:
        gate, up = linear("gate", x), linear("up", x)
    else:
        gate, up = g.ops("Split", 2, linear("gate_up", x), axis=1, num_outputs=2)
    return linear("down", g.op("Mul", silu(g, gate), up))
