"""What the blocks of a decoder share: positions and masks, all of it from `attention_mask`.

b batch, s new tokens, p cached ones, t = p + s, H heads, G key/value heads, h head width, r of them turned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from export.graph.builder import BOOL, FLOAT, FLOAT16, INT32, Graph
from export.graph.rotary import angles
from transform.architectures import Settings
from transform.architectures.graph_facts import Rope

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
    """What every block shares. Masks by window, None: all tokens before; [b, 1, s, t], or [b, 1, 1, s, t] with grouped
    heads of several operators."""

    cos: str  # [b, s, 1, r/2]
    sin: str  # [b, s, 1, r/2]
    query_shape: str  # b, s, H, h
    key_shape: str  # b, s, G, h
    masks: dict[int | None, str]  # a bias to be added, of a growing cache; what is allowed, of one with fixed slots
    places: str = ""  # of a cache with fixed slots: where the new keys go, [1, G, s, 3]
    alone: str = ""  # where one operator does it, as the next two: whether it can, a truth value
    last: str = ""  # the last place of every row: t - 1, int32 [b]
    total: str = ""  # t, int32


def attention_context(
    g: Graph,
    settings: Settings,
    rope: Rope,
    windows: Sequence[int | None],
    batch_and_new: str,
    mask: str,
    sinks: bool = False,
) -> Context:
    """Angles and masks for the last s of t tokens; `batch_and_new` holds b and s, `windows` the blocks' own, `sinks`:
    some block's heads have sinks, which the one operator doesn't know in every onnxruntime that has it.

    Positions count the valid tokens only, causality goes by place in the cache: so left-padded, right-padded and
    holed masks all mean what they mean in the model.
    """
    new = g.op("Slice", batch_and_new, g.ints(1), g.ints(2))  # [1]
    last = g.op("Neg", new)
    counted = g.op("Sub", g.op("CumSum", mask, g.int(1)), g.int(1))
    positions = g.op("Max", counted, g.int(0))  # [b, t]
    positions = g.op("Slice", positions, last, g.ints(INT64_MAX), g.ints(1))  # [b, s]
    cos, sin = angles(g, rope, g.op("Cast", positions, to=FLOAT))

    total = g.op("Shape", mask, start=1, end=2)  # [1]
    columns = g.op("Range", g.int(0), g.op("Squeeze", total, g.ints(0)), g.int(1))  # [t]
    rows = g.op("Slice", columns, last, g.ints(INT64_MAX), g.ints(0))  # [s]
    rows = g.op("Unsqueeze", rows, g.ints(1))
    causal = g.op("LessOrEqual", columns, rows)  # [s, t]
    one = g.form.attends_at_once(settings.head_dim) and not sinks
    grouped = settings.kv_heads < settings.heads and not one
    valid = g.op("Unsqueeze", g.op("Cast", mask, to=BOOL), g.ints(*((1, 2, 3) if grouped else (1, 2))))
    masks: dict[int | None, str] = {}
    for window in dict.fromkeys(windows):
        allowed = g.op("And", _within(g, causal, columns, rows, window), valid)
        masks[window] = g.op("Where", allowed, g.float(0.0), g.float(LOWEST[g.compute]))
    shapes = {
        heads: g.op("Concat", batch_and_new, g.ints(heads, settings.head_dim), axis=0)
        for heads in dict.fromkeys((settings.heads, settings.kv_heads))
    }
    context = Context(cos, sin, shapes[settings.heads], shapes[settings.kv_heads], masks)
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


def static_context(
    g: Graph, settings: Settings, rope: Rope, windows: Sequence[int | None], static: Static, mask: str, past: str
) -> Context:
    """The same for s tokens that go to the slots from `past` [1] on; `mask` [1, t] marks the valid slots.

    No shape depends on a value, no operator reads a size: what a captured graph or a compiled engine needs.
    """
    s, t, kv_heads = static.sequence, static.cache, settings.kv_heads
    slots = g.op("Add", past, g.constant(np.arange(s, dtype=np.int64)))  # [s]
    columns = g.constant(np.arange(t, dtype=np.int64))
    rows = g.op("Unsqueeze", slots, g.ints(1))
    causal = g.op("LessOrEqual", columns, rows)
    valid = g.op("Unsqueeze", g.op("Cast", mask, to=BOOL), g.ints(1))
    allowed = g.op("And", causal, valid)  # [1, s, t]
    # the valid slots up to one's own: its position, and small enough to be exact in float32
    counted = g.op("ReduceSum", g.op("Cast", allowed, to=FLOAT), g.ints(2), keepdims=0)
    cos, sin = angles(g, rope, g.op("Max", g.op("Sub", counted, g.float32(1.0)), g.float32(0.0)))
    heads = np.arange(kv_heads, dtype=np.int64).reshape(1, kv_heads, 1, 1)
    places = g.op("Reshape", slots, g.ints(1, 1, s, 1))
    parts = (g.constant(np.zeros((1, 1, 1, 1), np.int64)), g.constant(heads), places)
    shape = g.ints(1, kv_heads, s, 1)
    masks: dict[int | None, str] = {}
    for window in dict.fromkeys(windows):
        inside = allowed if window is None else g.op("And", _within(g, causal, columns, rows, window), valid)
        masks[window] = g.op("Unsqueeze", inside, g.ints(*((1, 2) if kv_heads < settings.heads else (1,))))
    return Context(
        cos,
        sin,
        query_shape=g.ints(1, s, settings.heads, settings.head_dim),
        key_shape=g.ints(1, s, kv_heads, settings.head_dim),
        masks=masks,
        places=g.op("Concat", *(g.op("Expand", part, shape) for part in parts), axis=3),
    )


def _within(g: Graph, causal: str, columns: str, rows: str, window: int | None) -> str:
    """[s, t]: places before one's own, less than `window` away."""
    if window is None:
        return causal
    return g.op("And", causal, g.op("Greater", columns, g.op("Sub", rows, g.int(window))))
