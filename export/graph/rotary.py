"""Rotary positions: frequencies and the factor on cosine and sine, as transformers computes them, and the turn itself.

Angles are computed in the graph, so that there are no tables. Of each head the first r of h numbers are turned.
"""

import math

import numpy as np

from export.graph.builder import Graph
from transform.architectures.graph_facts import Rope, Scaling, Turn
from transform.arrays import Array


def frequencies(rope: Rope) -> tuple[Array, float]:
    """Radians per position [r/2] in float32, and what cosines and sines are multiplied with.

    Formulas: transformers' `ROPE_INIT_FUNCTIONS`; YaRN is arXiv 2309.00071. Rounded where torch rounds: at position
    4000 one bit more or less is an angle of 2e-4.
    """
    half = np.arange(0, rope.width, 2, dtype=np.float32) / np.float32(rope.width)
    powers = (np.float64(rope.theta) ** half).astype(np.float32)
    plain = np.float32(1.0) / powers
    given = rope.parameters
    if rope.scaling is Scaling.LINEAR:
        return plain / np.float32(given["factor"]), 1.0
    if rope.scaling is Scaling.LLAMA3:
        return _llama3(rope, plain), 1.0
    if rope.scaling is Scaling.YARN:
        stretched = np.float32(1.0) / (np.float32(given["factor"]) * powers)
        kept = np.float32(1.0) - _ramp(rope)
        return stretched * (np.float32(1.0) - kept) + plain * kept, _yarn_factor(rope)
    return plain, 1.0


def angles(g: Graph, rope: Rope, positions: str) -> tuple[str, str]:
    """Cosines and sines [b, s, 1, r/2] of float32 positions [b, s], in the graph's type; angles need float32."""
    by_position, factor = frequencies(rope)
    each = g.constant(by_position)
    turned = g.op("Mul", g.op("Unsqueeze", positions, g.ints(2, 3)), each)

    def of_angles(kind: str) -> str:
        found = g.op(kind, turned)
        return g.cast(found if factor == 1.0 else g.op("Mul", found, g.float32(factor)))

    return of_angles("Cos"), of_angles("Sin")


def rotate(g: Graph, rope: Rope, x: str, width: int, cos: str, sin: str) -> str:
    """x [b, s, heads, width], turned. Pairs come out as halves: queries and keys are alike, so their products are
    what they were."""
    kept = ""
    if rope.width < width:
        x, kept = g.ops("Split", 2, x, g.ints(rope.width, width - rope.width), axis=-1)
    if rope.turn is Turn.HALVES:
        first, second = g.ops("Split", 2, x, axis=-1, num_outputs=2)
    else:
        first, second = (g.op("Slice", x, g.ints(at), g.ints(rope.width), g.ints(3), g.ints(2)) for at in (0, 1))
    left = g.op("Sub", g.op("Mul", first, cos), g.op("Mul", second, sin))
    right = g.op("Add", g.op("Mul", second, cos), g.op("Mul", first, sin))
    return g.op("Concat", left, right, *([kept] if kept else []), axis=-1)


def _llama3(rope: Rope, plain: Array) -> Array:
    given = rope.parameters
    factor, low, high = (np.float32(given[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    before = given["original_max_position_embeddings"]
    waves = np.float32(2 * math.pi) / plain
    longest, shortest = np.float32(before / float(low)), np.float32(before / float(high))
    stretched = np.where(waves > longest, plain / factor, plain)
    smooth = (np.float32(before) / waves - low) / (high - low)
    between = (np.float32(1) - smooth) * stretched / factor + smooth * stretched
    return np.where((waves >= shortest) & (waves <= longest), between, stretched).astype(np.float32)


def _ramp(rope: Rope) -> Array:
    """0 where frequencies are kept, 1 where they are stretched."""
    given = rope.parameters
    before, width = given["original_max_position_embeddings"], rope.width

    def place(turns: float) -> float:
        return width * math.log(before / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = place(given.get("beta_fast") or 32), place(given.get("beta_slow") or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high += 0.001 if low == high else 0.0
    steps = (np.arange(width // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(steps, 0, 1)


def _yarn_factor(rope: Rope) -> float:
    given = rope.parameters

    def scale(by: float) -> float:
        return 1.0 if given["factor"] <= 1 else 0.1 * by * math.log(given["factor"]) + 1.0

    if "attention_factor" in given:
        return given["attention_factor"]
    if given.get("mscale") and given.get("mscale_all_dim"):
        return scale(given["mscale"]) / scale(given["mscale_all_dim"])
    return scale(1.0)
