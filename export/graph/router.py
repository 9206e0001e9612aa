"""Routers: logits -> which experts a token gets and what they weigh, of every kind that families have.

All of it in float32, as models do it. n tokens, k experts per token, E experts.
"""

from export.graph.builder import FLOAT, TYPES, Graph
from transform.architectures.graph_facts import Routing, Scores
from transform.checkpoint import Tensor

LOWEST = -1e4  # of logits: no softmax keeps anything of it, and float16 holds it
LEAST = 1e-30  # of weights: log 0 isn't finite


def route(
    g: Graph, routing: Routing, logits: str, k: int, experts: int, correction: Tensor | None = None
) -> tuple[str, str]:
    """(weights [n, k], experts [n, k]) of logits [n, E] in float32. `correction` [E] is added to what chooses, not to
    what weighs."""
    if routing.scores is Scores.CHOSEN:
        values, chosen = g.ops("TopK", 2, logits, g.ints(k), axis=-1)
        return _scaled(g, routing, g.op("Softmax", values, axis=-1)), chosen
    scores = g.op("Softmax", logits, axis=-1) if routing.scores is Scores.SOFTMAX else g.op("Sigmoid", logits)
    if correction is None and routing.groups is None:
        weights, chosen = g.ops("TopK", 2, scores, g.ints(k), axis=-1)
    else:
        choice = scores if correction is None else g.op("Add", scores, _float32(g, correction))
        choice = choice if routing.groups is None else _of_groups(g, choice, experts, *routing.groups)
        chosen = g.ops("TopK", 2, choice, g.ints(k), axis=-1)[1]
        weights = g.op("GatherElements", scores, chosen, axis=1)
    if routing.renormalise:
        total = g.op("ReduceSum", weights, g.ints(-1), keepdims=1)
        if routing.add:
            total = g.op("Add", total, g.float32(routing.add))
        if routing.least:
            total = g.op("Max", total, g.float32(routing.least))
        weights = g.op("Div", weights, total)
    return _scaled(g, routing, weights), chosen


def is_native(routing: Routing, correction: Tensor | None) -> bool:
    """Whether onnxruntime's fused operators take this router's logits as they are."""
    return routing.scores is not Scores.SIGMOID and correction is None and routing == Routing(
        routing.scores, renormalise=routing.renormalise
    )  # fmt: skip


def log_weights(g: Graph, logits: str, weights: str, chosen: str) -> tuple[str, str]:
    """Logits [n, E] of which a fused operator that renormalises makes these weights but for their sum, and that [n, 1],
    both in the graph's type.

    Softmax over log w is w / sum w. Of the router's own `logits` only the shape is taken.
    """
    logs = g.op("Log", g.op("Max", weights, g.float32(LEAST)))
    nowhere = g.op("Add", g.op("Mul", logits, g.float32(0.0)), g.float32(LOWEST))
    placed = g.op("ScatterElements", nowhere, chosen, logs, axis=1)
    return g.cast(placed), g.cast(g.op("ReduceSum", weights, g.ints(-1), keepdims=1))


def _float32(g: Graph, tensor: Tensor) -> str:
    name = g.stored(tensor)
    return name if TYPES[tensor.stored] == FLOAT else g.op("Cast", name, to=FLOAT)


def _of_groups(g: Graph, choice: str, experts: int, groups: int, taken: int) -> str:
    """`choice` [n, E] where it stands in one of the groups whose two best experts are best together, else lowest."""
    grouped = g.op("Reshape", choice, g.ints(-1, groups, experts // groups))
    best = g.op("ReduceSum", g.ops("TopK", 2, grouped, g.ints(2), axis=-1)[0], g.ints(-1), keepdims=0)  # [n, groups]
    worst = g.op("Slice", g.ops("TopK", 2, best, g.ints(taken), axis=-1)[0], g.ints(-1), g.ints(taken), g.ints(1))
    allowed = g.op("Unsqueeze", g.op("GreaterOrEqual", best, worst), g.ints(2))  # [n, groups, 1]
    kept = g.op("Where", allowed, grouped, g.float32(LOWEST))
    return g.op("Reshape", kept, g.ints(-1, experts))


def _scaled(g: Graph, routing: Routing, weights: str) -> str:
    return weights if routing.scale == 1.0 else g.op("Mul", weights, g.float32(routing.scale))
