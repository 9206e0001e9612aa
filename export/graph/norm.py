"""The two normalisations, over the last axis. Fused ones keep float32 inside whatever they are given."""

from export.graph.builder import Graph
from transform.checkpoint import Tensor


def rms_norm(g: Graph, x: str, weight: Tensor, eps: float) -> str:
    """Root-mean-square norm: x / sqrt(mean(x^2) + eps), then the weight."""
    if g.fused:
        return g.op("SimplifiedLayerNormalization", x, g.weight(weight), axis=-1, epsilon=eps, stash_type=1)
    mean = g.op("ReduceMean", g.op("Pow", x, g.float(2.0)), g.ints(-1), keepdims=1)
    scaled = g.op("Div", x, g.op("Sqrt", g.op("Add", mean, g.float(eps))))
    return g.op("Mul", scaled, g.weight(weight))


def layer_norm(g: Graph, x: str, weight: Tensor, bias: Tensor, eps: float) -> str:
    """Layer norm with weight and bias."""
    return g.op("LayerNormalization", x, g.weight(weight), g.weight(bias), axis=-1, epsilon=eps)
