"""What the attention of every block shares: positions and angles, the mask as a bias or as places, sizes.

b batch, s new tokens, p cached ones, t = p + s, H heads, G key/value heads, h head width.
"""

from dataclasses import dataclass, replace

import numpy as np

from export.graph.builder import BOOL, FLOAT, FLOAT16, INT32, Graph
from transform.architectures import Settings

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
    bias: str = ""  # of a growing cache: [b, 1, s, t], or [b, 1, 1, s, t] with grouped heads of several operators
    allowed: str = ""  # of a cache with fixed slots, of the same shape
    places: str = ""  # of a cache with fixed slots: where the new keys go, [1, G, s, 3]
    alone: str = ""  # where one operator does it, as the next two: whether it can, a truth value
    last: str = ""  # the last place of every row: t - 1, int32 [b]
    total: str = ""  # t, int32


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
    one = g.form.attends_at_once(settings.head_dim)
    grouped = settings.kv_heads < settings.heads and not one
    valid = g.op("Unsqueeze", g.op("Cast", mask, to=BOOL), g.ints(*((1, 2, 3) if grouped else (1, 2))))
    bias = g.op("Where", g.op("And", causal, valid), g.float(0.0), g.float(LOWEST[g.compute]))
    shapes = {
        heads: g.op("Concat", batch_and_new, g.ints(heads, settings.head_dim), axis=0)
        for heads in dict.fromkeys((settings.heads, settings.kv_heads))
    }
    context = Context(cos, sin, bias=bias, query_shape=shapes[settings.heads], key_shape=shapes[settings.kv_heads])
    if not one:
        return context
    # behind a past it takes several new tokens of one row alone: min(b, s) is 1 where p isn't 0; without one there is
    # nothing to gain, and some runtimes give an empty past another batch
    reach = g.op("Min", g.op("Sub", total, new), g.ints(1))
    end = g.op("Cast", g.op("Sub", total, g.ints(1)), to=INT32)
    return replace(
        context,
        alone=g.op("LessOrEqual", g.op("ReduceMin", batch_and_new), reach),
        last=g.op("Expand", end, g.op("Shape", mask, start=0, end=1)),
        total=g.op("Squeeze", g.op("Cast", total, to=INT32), g.ints(0)),
    )


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
