"""The decoder's attention: cache, grouped heads, norms, biases and sinks where a block has them.

b batch, s new tokens, p cached ones, t = p + s, H heads, G key/value heads, h head width, n = b*s.
Cached keys are normed and rotated. A cache grows with every call, or has t fixed slots that are written in place.
Positions and masks, which blocks share, are `context.py`'s.
"""

from typing import NamedTuple

import numpy as np

from export.graph.builder import CONTRIB, FLOAT16, Graph
from export.graph.context import INT64_MAX, LOWEST, Context
from export.graph.norm import rms_norm
from export.graph.rotary import rotate
from transform.architectures import Settings
from transform.architectures.graph_facts import DecoderGraph
from transform.checkpoint import Checkpoint, Tensor


def attention(
    g: Graph, checkpoint: Checkpoint, facts: DecoderGraph, i: int, x: str, context: Context, past: tuple[str, str]
) -> tuple[str, str, str]:
    """Attention of block i on x [n, d] (already normed) -> (its output [n, d], present keys, present values)."""
    settings = checkpoint.settings
    norm = checkpoint.find("attention.q_norm", i)
    flat = norm is not None and norm.shape == (settings.heads * settings.head_dim,)

    def normed(value: str, part: str, over_all_heads: bool) -> str:
        """A value as it is, unless this is where the block norms queries and keys."""
        if norm is None or flat is not over_all_heads:
            return value
        return rms_norm(g, value, checkpoint.tensor(f"attention.{part}_norm", i), settings.eps)

    def turned(value: str, part: str, shape: str) -> str:
        heads = normed(g.op("Reshape", value, shape), part, False)
        return rotate(g, facts.rope, heads, settings.head_dim, context.cos, context.sin)

    q, k, v = _project(g, checkpoint, i, x)
    q, k = normed(q, "q", True), normed(k, "k", True)
    if settings.clip_qkv is not None:  # after the norms, as transformers has it
        q, k, v = (_clipped(g, value, settings.clip_qkv) for value in (q, k, v))
    q = turned(q, "q", context.query_shape)  # [b, s, H, h]
    k = turned(k, "k", context.key_shape)  # [b, s, G, h]
    v = g.op("Reshape", v, context.key_shape)
    names = (f"present.{i}.key", f"present.{i}.value")
    mask, sinks = context.masks[settings.windows[i]], checkpoint.find("attention.sinks", i)
    scale = settings.head_dim**-0.5 if facts.attention is None else facts.attention
    given = _Given(settings, context, mask, sinks, scale, (q, k, v), past)
    if context.alone:
        mixed = g.choose_and(
            names, context.alone, lambda: _one_operator(g, given), lambda: _several_operators(g, given)
        )
    else:
        mixed, *_ = _several_operators(g, given, names)
    return _linear(g, checkpoint, "attention.out", i, mixed), *names


class _Given(NamedTuple):
    """What a block attends with."""

    settings: Settings
    context: Context
    mask: str  # of its window
    sinks: Tensor | None  # [H]
    scale: float
    new: tuple[str, str, str]  # q [b, s, H, h], k and v [b, s, G, h]
    past: tuple[str, str]  # keys and values [b, G, p, h]


def _one_operator(g: Graph, given: _Given) -> tuple[str, str, str]:
    """`_several_operators` in one. Where past and present are one buffer, new rows are written behind the old ones;
    else both are copied to the present."""
    settings, context = given.settings, given.context
    q, k, v = (g.op("Reshape", value, g.ints(0, 0, -1)) for value in given.new)
    mixed, keys, values = g.ops(
        "GroupQueryAttention", 3, q, k, v, *given.past, context.last, context.total, "", "", "", given.mask,
        domain=CONTRIB, num_heads=settings.heads, kv_num_heads=settings.kv_heads, scale=given.scale,
    )  # fmt: skip
    return g.op("Reshape", mixed, g.ints(-1, settings.heads * settings.head_dim)), keys, values


def _several_operators(g: Graph, given: _Given, names: tuple[str, str] | None = None) -> tuple[str, str, str]:
    """-> (mixed [n, H*h], present keys and values [b, G, t, h], under their `names` where these are given)."""
    settings, context, past = given.settings, given.context, given.past
    q, k, v = (g.op("Transpose", value, perm=[0, 2, 1, 3]) for value in given.new)
    results = names or (None, None)
    if context.places:
        # only this reads the past, so that it may be the same buffer as the present
        keys, values = (
            g.result(name, "ScatterND", old, context.places, value)
            for name, old, value in zip(results, past, (k, v), strict=True)
        )
    else:  # under the output's own name: an Identity would copy the whole cache once more
        keys, values = (
            g.result(name, "Concat", old, value, axis=2) for name, old, value in zip(results, past, (k, v), strict=True)
        )
    grouped = settings.kv_heads < settings.heads
    if grouped:  # [b, G, H/G, s, h] against [b, G, 1, t, h]
        shape = g.ints(0, settings.kv_heads, settings.heads // settings.kv_heads, -1, settings.head_dim)
        q = g.op("Reshape", q, shape)
        k, v = (g.op("Unsqueeze", value, g.ints(2)) for value in (keys, values))
    else:
        k, v = keys, values
    scores = scaled_products(g, q, k, given.scale, 5 if grouped else 4)
    if context.places:  # chosen, not added: whatever stands in an empty slot, its score may be infinite
        scores = g.op("Where", given.mask, scores, g.float(LOWEST[g.compute]))
    else:
        bias = g.op("Unsqueeze", given.mask, g.ints(2)) if grouped and context.alone else given.mask
        scores = g.op("Add", scores, bias)
    mixed = g.op("MatMul", _shares(g, settings, given.sinks, scores), v)  # [b, H, s, h], heads in two axes if grouped
    if grouped:
        mixed = g.op("Reshape", mixed, g.ints(0, settings.heads, -1, settings.head_dim))
    mixed = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = g.op("Reshape", mixed, g.ints(-1, settings.heads * settings.head_dim))  # [n, H*h]
    return mixed, keys, values


def _clipped(g: Graph, value: str, limit: float) -> str:
    """A value within -limit and limit; in float32 where the graph's type would make another limit of it."""
    if g.compute == FLOAT16 and float(np.float16(limit)) != limit:
        return g.cast(g.op("Clip", g.wide(value), g.float32(-limit), g.float32(limit)))
    return g.op("Clip", value, g.float(-limit), g.float(limit))


def scaled_products(g: Graph, q: str, k: str, scale: float, rank: int) -> str:
    """scale q k^T over the last two of `rank` axes; fused, `scale` stays float32 whatever the graph computes in."""
    if g.fused:
        return g.op("FusedMatMul", q, k, domain=CONTRIB, transB=1, alpha=scale)
    flipped = g.op("Transpose", k, perm=[*range(rank - 2), rank - 1, rank - 2])
    return g.op("MatMul", g.op("Mul", q, g.float(scale)), flipped)


def _shares(g: Graph, settings: Settings, sinks: Tensor | None, scores: str) -> str:
    """Softmax of the scores [..., s, t]; where heads have sinks, each takes its share of the sum and gives nothing."""
    if sinks is None:
        return g.op("Softmax", scores, axis=-1)
    heads, kv_heads = settings.heads, settings.kv_heads
    by_head = g.ints(*((1, kv_heads, heads // kv_heads, 1, 1) if kv_heads < heads else (1, heads, 1, 1)))
    # as wide as any column of the scores, without asking for a size
    nothing = g.op("Mul", g.op("Slice", scores, g.ints(0), g.ints(1), g.ints(-1)), g.float(0.0))
    column = g.op("Add", nothing, g.op("Reshape", g.weight(sinks), by_head))
    shares = g.op("Softmax", g.op("Concat", column, scores, axis=-1), axis=-1)
    return g.op("Slice", shares, g.ints(1), g.ints(INT64_MAX), g.ints(-1))


def _project(g: Graph, checkpoint: Checkpoint, i: int, x: str) -> tuple[str, str, str]:
    """q [n, H*h], k and v [n, G*h], from one fused weight or from three."""
    settings = checkpoint.settings
    if checkpoint.find("attention.qkv", i) is not None:
        fused = _linear(g, checkpoint, "attention.qkv", i, x)
        narrow = settings.kv_heads * settings.head_dim
        sizes = g.ints(settings.heads * settings.head_dim, narrow, narrow)
        q, k, v = g.ops("Split", 3, fused, sizes, axis=1)
        return q, k, v
    q, k, v = (_linear(g, checkpoint, f"attention.{part}", i, x) for part in "qkv")
    return q, k, v


def _linear(g: Graph, checkpoint: Checkpoint, role: str, i: int, x: str) -> str:
    return g.linear(x, checkpoint.tensor(role, i), checkpoint.find(f"{role}.bias", i))
