"""The decoder's attention: positions and mask from `attention_mask`, rotary embedding, cache, grouped heads.

b batch, s new tokens, p cached ones, t = p + s, H heads, G key/value heads, h head width, n = b*s.
Cached keys are normed and rotated. A cache grows with every call, or has t fixed slots that are written in place.
"""

from dataclasses import dataclass

import numpy as np

from export.graph.builder import BOOL, CONTRIB, FLOAT, FLOAT16, Graph
from export.graph.norm import rms_norm
from transform.architectures import QkNorm, Settings
from transform.checkpoint import Checkpoint

# Finite, also after a score was added: a row that may see nothing must not become NaN.
LOWEST = {FLOAT: float(np.finfo(np.float32).min), FLOAT16: -3e4}
INT64_MAX = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Static:
    """The sizes of a decoder graph without dynamic axes; the batch is 1."""

    sequence: int  # new tokens per call
    cache: int  # slots


@dataclass(frozen=True)
class Context:
    """What every block shares."""

    cos: str  # [b, s, 1, h/2]
    sin: str  # [b, s, 1, h/2]
    query_shape: str  # b, s, H, h
    key_shape: str  # b, s, G, h
    bias: str = ""  # of a growing cache: [b, 1, s, t], or [b, 1, 1, s, t] with grouped heads
    allowed: str = ""  # of a cache with fixed slots, of the same shape
    places: str = ""  # of a cache with fixed slots: where the new keys go, [1, G, s, 3]


def attention_context(g: Graph, settings: Settings, batch_and_new: str, mask: str) -> Context:
    """Angles and mask for the last s of t tokens; `batch_and_new` holds b and s.

    Positions count the valid tokens only, causality goes by place in the cache: so left-padded, right-padded and
    holed masks all mean what they mean in the model.
    """
    new = g.op("Slice", batch_and_new, g.ints(1), g.ints(2))  # [1]
    last = g.op("Neg", new)
    counted = g.op("Sub", g.op("CumSum", mask, g.int(1)), g.int(1))
    positions = g.op("Max", counted, g.int(0))  # [b, t]
    positions = g.op("Slice", positions, last, g.ints(INT64_MAX), g.ints(1))  # [b, s]
    cos, sin = _angles(g, settings, g.op("Cast", positions, to=FLOAT))

    total = g.op("Shape", mask, start=1, end=2)  # [1]
    columns = g.op("Range", g.int(0), g.op("Squeeze", total, g.ints(0)), g.int(1))  # [t]
    rows = g.op("Slice", columns, last, g.ints(INT64_MAX), g.ints(0))  # [s]
    causal = g.op("LessOrEqual", columns, g.op("Unsqueeze", rows, g.ints(1)))  # [s, t]
    grouped = settings.kv_heads < settings.heads
    valid = g.op("Unsqueeze", g.op("Cast", mask, to=BOOL), g.ints(*((1, 2, 3) if grouped else (1, 2))))
    bias = g.op("Where", g.op("And", causal, valid), g.float(0.0), g.float(LOWEST[g.compute]))
    shapes = {
        heads: g.op("Concat", batch_and_new, g.ints(heads, settings.head_dim), axis=0)
        for heads in dict.fromkeys((settings.heads, settings.kv_heads))
    }
    return Context(cos, sin, bias=bias, query_shape=shapes[settings.heads], key_shape=shapes[settings.kv_heads])


def static_context(g: Graph, settings: Settings, static: Static, mask: str, past_length: str) -> Context:
    """The same for s tokens that go to the slots from `past_length` [1] on; `mask` [1, t] marks the valid slots.

    No shape depends on a value, no operator reads a size: what a captured graph or a compiled engine needs.
    """
    s, t, kv_heads = static.sequence, static.cache, settings.kv_heads
    slots = g.op("Add", past_length, g.constant(np.arange(s, dtype=np.int64)))  # [s]
    causal = g.op("LessOrEqual", g.constant(np.arange(t, dtype=np.int64)), g.op("Unsqueeze", slots, g.ints(1)))
    allowed = g.op("And", causal, g.op("Unsqueeze", g.op("Cast", mask, to=BOOL), g.ints(1)))  # [1, s, t]
    # the valid slots up to one's own: its position, and small enough to be exact in float32
    counted = g.op("ReduceSum", g.op("Cast", allowed, to=FLOAT), g.ints(2), keepdims=0)
    cos, sin = _angles(g, settings, g.op("Max", g.op("Sub", counted, g.float32(1.0)), g.float32(0.0)))
    heads = np.arange(kv_heads, dtype=np.int64).reshape(1, kv_heads, 1, 1)
    rows = g.op("Reshape", slots, g.ints(1, 1, s, 1))
    parts = (g.constant(np.zeros((1, 1, 1, 1), np.int64)), g.constant(heads), rows)
    shape = g.ints(1, kv_heads, s, 1)
    return Context(
        cos,
        sin,
        allowed=g.op("Unsqueeze", allowed, g.ints(*((1, 2) if kv_heads < settings.heads else (1,)))),
        places=g.op("Concat", *(g.op("Expand", part, shape) for part in parts), axis=3),
        query_shape=g.ints(1, s, settings.heads, settings.head_dim),
        key_shape=g.ints(1, s, kv_heads, settings.head_dim),
    )


def _angles(g: Graph, settings: Settings, positions: str) -> tuple[str, str]:
    """Cosines and sines of float32 positions [b, s], in the graph's type; the angles themselves need float32."""
    half = np.arange(0, settings.head_dim, 2, dtype=np.float32) / np.float32(settings.head_dim)
    # Rounded where torch rounds: at position 4000 one bit more or less is an angle of 2e-4.
    powers = (np.float64(settings.rope_theta) ** half).astype(np.float32)
    frequencies = g.constant(np.float32(1.0) / powers)  # [h/2]
    angles = g.op("Unsqueeze", positions, g.ints(2, 3))
    angles = g.op("Mul", angles, frequencies)
    return g.cast(g.op("Cos", angles)), g.cast(g.op("Sin", angles))


def attention(
    g: Graph, checkpoint: Checkpoint, i: int, x: str, context: Context, past: tuple[str, str]
) -> tuple[str, str, str]:
    """Attention of block i on x [n, d] (already normed) -> (its output [n, d], present keys, present values)."""
    settings = checkpoint.settings

    def normed(value: str, part: str, place: QkNorm) -> str:
        """A value as it is, unless this is where the family norms queries and keys."""
        if checkpoint.architecture.qk_norm is not place:
            return value
        return rms_norm(g, value, checkpoint.tensor(f"attention.{part}_norm", i), settings.eps)

    q, k, v = _project(g, checkpoint, i, x)
    q, k = normed(q, "q", QkNorm.FULL), normed(k, "k", QkNorm.FULL)
    if settings.clip_qkv is not None:  # after the norms, as transformers has it
        low, high = g.float(-settings.clip_qkv), g.float(settings.clip_qkv)
        q, k, v = (g.op("Clip", value, low, high) for value in (q, k, v))
    q = _rotate(g, normed(g.op("Reshape", q, context.query_shape), "q", QkNorm.HEAD), context)  # [b, s, H, h]
    k = _rotate(g, normed(g.op("Reshape", k, context.key_shape), "k", QkNorm.HEAD), context)  # [b, s, G, h]
    v = g.op("Reshape", v, context.key_shape)
    q, k, v = (g.op("Transpose", value, perm=[0, 2, 1, 3]) for value in (q, k, v))
    cached = zip(("key", "value"), past, (k, v), strict=True)
    if context.places:
        # only this reads the past, so that it may be the same buffer as the present
        keys, values = (
            g.named(f"present.{i}.{part}", "ScatterND", old, context.places, new) for part, old, new in cached
        )
    else:  # under the output's own name: an Identity would copy the whole cache once more
        keys, values = (g.named(f"present.{i}.{part}", "Concat", old, new, axis=2) for part, old, new in cached)
    # both [b, G, t, h]

    grouped = settings.kv_heads < settings.heads
    if grouped:  # [b, G, H/G, s, h] against [b, G, 1, t, h]
        shape = g.ints(0, settings.kv_heads, settings.heads // settings.kv_heads, -1, settings.head_dim)
        q = g.op("Reshape", q, shape)
        k, v = (g.op("Unsqueeze", value, g.ints(2)) for value in (keys, values))
    else:
        k, v = keys, values
    scores = scaled_products(g, q, k, settings.head_dim**-0.5, 5 if grouped else 4)
    if context.allowed:  # chosen, not added: whatever stands in an empty slot, its score may be infinite
        scores = g.op("Where", context.allowed, scores, g.float(LOWEST[g.compute]))
    else:
        scores = g.op("Add", scores, context.bias)
    mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)  # [b, H, s, h], heads in two axes if grouped
    if grouped:
        mixed = g.op("Reshape", mixed, g.ints(0, settings.heads, -1, settings.head_dim))
    mixed = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = g.op("Reshape", mixed, g.ints(-1, settings.heads * settings.head_dim))  # [n, H*h]
    return g.linear(mixed, checkpoint.tensor("attention.out", i)), keys, values


def scaled_products(g: Graph, q: str, k: str, scale: float, rank: int) -> str:
    """scale q k^T over the last two of `rank` axes; fused, `scale` stays float32 whatever the graph computes in."""
    if g.fused:
        return g.op("FusedMatMul", q, k, domain=CONTRIB, transB=1, alpha=scale)
    flipped = g.op("Transpose", k, perm=[*range(rank - 2), rank - 1, rank - 2])
    return g.op("MatMul", g.op("Mul", q, g.float(scale)), flipped)


def _project(g: Graph, checkpoint: Checkpoint, i: int, x: str) -> tuple[str, str, str]:
    """q [n, H*h], k and v [n, G*h], from one fused weight or from three."""
    settings = checkpoint.settings
    if "attention.qkv" in checkpoint.architecture.roles:
        fused = g.linear(x, checkpoint.tensor("attention.qkv", i))
        narrow = settings.kv_heads * settings.head_dim
        sizes = g.ints(settings.heads * settings.head_dim, narrow, narrow)
        q, k, v = g.ops("Split", 3, fused, sizes, axis=1)
        return q, k, v
    q, k, v = (g.linear(x, checkpoint.tensor(f"attention.{part}", i)) for part in "qkv")
    return q, k, v


def _rotate(g: Graph, x: str, context: Context) -> str:
    """Rotary embedding, half-split layout: the two halves of each head are the two coordinates."""
    first, second = g.ops("Split", 2, x, axis=-1, num_outputs=2)
    left = g.op("Sub", g.op("Mul", first, context.cos), g.op("Mul", second, context.sin))
    right = g.op("Add", g.op("Mul", second, context.cos), g.op("Mul", first, context.sin))
    return g.op("Concat", left, right, axis=-1)
