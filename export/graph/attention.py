"""The decoder's attention: projections, rotary embedding, the cache, grouped heads.

b batch, s new tokens, p cached ones, t = p + s, H heads, G key/value heads, h head width, n = b*s.
Cached keys are normed and rotated. A cache grows with every call, or has t fixed slots that are written in place.
"""

from export.graph.builder import CONTRIB, Graph
from export.graph.context import LOWEST, Context
from export.graph.norm import rms_norm
from transform.architectures import QkNorm, Settings
from transform.checkpoint import Checkpoint


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
    names = (f"present.{i}.key", f"present.{i}.value")
    if context.alone:
        mixed = g.choose_and(
            names,
            context.alone,
            lambda: _one_operator(g, settings, context, (q, k, v), past),
            lambda: _several_operators(g, settings, context, (q, k, v), past),
        )
    else:
        mixed, *_ = _several_operators(g, settings, context, (q, k, v), past, names)
    return g.linear(mixed, checkpoint.tensor("attention.out", i)), *names


def _one_operator(
    g: Graph, settings: Settings, context: Context, new: tuple[str, str, str], past: tuple[str, str]
) -> tuple[str, str, str]:
    """`_several_operators` in one. Where past and present are one buffer, new rows are written behind the old ones;
    else both are copied to the present."""
    q, k, v = (g.op("Reshape", value, g.ints(0, 0, -1)) for value in new)
    mixed, keys, values = g.ops(
        "GroupQueryAttention", 3, q, k, v, *past, context.last, context.total, "", "", "", context.bias,
        domain=CONTRIB, num_heads=settings.heads, kv_num_heads=settings.kv_heads, scale=settings.head_dim**-0.5,
    )  # fmt: skip
    return g.op("Reshape", mixed, g.ints(-1, settings.heads * settings.head_dim)), keys, values


def _several_operators(
    g: Graph,
    settings: Settings,
    context: Context,
    new: tuple[str, str, str],
    past: tuple[str, str],
    names: tuple[str, str] | None = None,
) -> tuple[str, str, str]:
    """New q [b, s, H, h], k and v [b, s, G, h] with the past [b, G, p, h] -> (mixed [n, H*h], present keys and values
    [b, G, t, h], under their `names` where these are given)."""
    q, k, v = (g.op("Transpose", value, perm=[0, 2, 1, 3]) for value in new)
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
    scores = scaled_products(g, q, k, settings.head_dim**-0.5, 5 if grouped else 4)
    if context.allowed:  # chosen, not added: whatever stands in an empty slot, its score may be infinite
        scores = g.op("Where", context.allowed, scores, g.float(LOWEST[g.compute]))
    else:
        bias = g.op("Unsqueeze", context.bias, g.ints(2)) if grouped and context.alone else context.bias
        scores = g.op("Add", scores, bias)
    mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)  # [b, H, s, h], heads in two axes if grouped
    if grouped:
        mixed = g.op("Reshape", mixed, g.ints(0, settings.heads, -1, settings.head_dim))
    mixed = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = g.op("Reshape", mixed, g.ints(-1, settings.heads * settings.head_dim))  # [n, H*h]
    return mixed, keys, values


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
