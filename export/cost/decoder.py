"""One call of a decoder -> its parts, for every family and form: what `export/graph/decoder.py` would emit.

n new tokens, t all positions behind them, d width, E experts, k of them per token. Elementwise work is counted as the
graphs have it: each operator reads and writes its values once.
"""

from export.cost.part import Part, Stage, merged
from export.cost.stored import Stored
from transform.experts import inner_width

ROTATION = 13  # numbers read or written per number that is split, turned, joined and transposed
ROTATION_OPERATORS = 8
SHARED_OPERATORS = 29  # mask, positions and shapes, once per call
ONE_OPERATORS = 10  # the same of what attention in one operator asks for besides


def decoder_parts(stored: Stored, new: int, total: int) -> Stage:
    """Of `new` tokens with `total` - `new` cached ones before them; logits of all new ones, as graphs have them."""
    settings = stored.checkpoint.settings
    parts = [
        _embedding(stored, new),
        Part("mask and positions", activations=8.0 * new * total, operators=_shared_operators(stored)),
    ]
    for i in range(settings.layers):
        parts += [*_attention(stored, i, new, total), *_feed_forward(stored, i, new)]
    vocab = stored.shape(stored.head)[0]
    parts += [
        _norm(stored, "norm", 0, new, settings.hidden),
        Part(
            "head",
            2 * new * settings.hidden * vocab,
            stored.read(stored.head),
            stored.value * new * (settings.hidden + vocab),
            1 + stored.casts(stored.head),
        ),
    ]
    return merged(parts)


def expected_experts(experts: int, k: int, tokens: int) -> float:
    """Distinct experts that `tokens` touch, k each, where every choice is equally likely: E (1 - (1 - k/E)^n)."""
    return experts * float(1 - (1 - k / experts) ** tokens)


def kv_bytes(stored: Stored, positions: int) -> int:
    """A cache of `positions`."""
    settings = stored.checkpoint.settings
    return 2 * settings.layers * settings.kv_heads * settings.head_dim * positions * stored.value


def _at_once(stored: Stored) -> bool:
    """Whether attention behind a past is one operator, which `knobcast run` has write into the past's own buffer."""
    return stored.form.attends_at_once(stored.checkpoint.settings.head_dim)


def _shared_operators(stored: Stored) -> int:
    return SHARED_OPERATORS + (ONE_OPERATORS if _at_once(stored) else 0)


def _embedding(stored: Stored, new: int) -> Part:
    tables = stored.checkpoint.architecture.modality.tables
    return Part(
        "embedding", activations=float(sum(stored.rows(role, new) for role in tables)), operators=9.0 * len(tables)
    )


def _norm(stored: Stored, role: str, i: int, rows: int, width: int) -> Part:
    """Fused it reads and writes once, else it is six operators."""
    passes, operators = (2, 1) if stored.form.fused else (7, 6)
    moved = stored.value * rows * width * passes
    return Part("norms", 0, stored.read(role, i), moved, operators + stored.casts(role, i))


def _attention(stored: Stored, i: int, new: int, total: int) -> list[Part]:
    settings, value = stored.checkpoint.settings, stored.value
    width, wide = settings.hidden, settings.heads * settings.head_dim
    narrow = settings.kv_heads * settings.head_dim
    fused = stored.checkpoint.has("attention.qkv", i)
    projections = ["attention.qkv"] if fused else [f"attention.{part}" for part in "qkv"]
    outputs = sum(stored.shape(role, i)[0] for role in projections)
    parts = _norms(stored, "attention", i, new)
    if stored.checkpoint.has("attention.q_norm", i):
        parts += [_norm(stored, f"attention.{part}_norm", i, new, size) for part, size in (("q", wide), ("k", narrow))]
    projected = [*projections, "attention.out"]
    parts.append(
        Part(
            "attention projections",
            2 * new * (width * outputs + wide * width),
            sum(stored.read(role, i) for role in projected),
            value * new * (len(projections) * width + outputs + wide + width),
            len(projected) + sum(stored.casts(role, i) for role in projected),
        )
    )
    clipped = 3 if settings.clip_qkv is not None else 0
    one = _at_once(stored) and new < total
    turned = (ROTATION - 2) * (wide + narrow) if one else ROTATION * (wide + narrow) + 2 * narrow + 2 * wide
    turned += 2 * outputs if fused or clipped else 0
    parts.append(
        Part(
            "rotation and sums",
            activations=value * new * (turned + 3 * width),
            operators=2 * ROTATION_OPERATORS + 3 + 3 + (1 if one else 2) + 1 + int(fused) + clipped,
        )
    )
    scores = 6 * settings.heads * new * total + 2 * wide * new
    if one:  # new rows are written behind the past, all are read by the two products; one operator in an `If`
        parts.append(Part("cache", activations=value * 2 * narrow * (total + new)))
        parts.append(Part("attention", 4 * new * total * wide, 0, value * scores, 2))
        return parts
    # the graph copies the cache: past and new are read, the present is written, and read by the two products
    parts.append(Part("cache", activations=value * 2 * narrow * 3 * total, operators=2))
    grouped = settings.kv_heads < settings.heads
    unfused = 0 if stored.form.fused else 2  # scaling and transposing for themselves
    parts.append(
        Part(
            "attention",
            4 * new * total * wide,
            0,
            value * (scores + (2 * narrow * total + 2 * wide * new if unfused else 0)),
            4 + unfused + (4 if grouped else 0),
        )
    )
    return parts


def _norms(stored: Stored, branch: str, i: int, new: int) -> list[Part]:
    """Those before a branch and behind it."""
    roles = [f"{branch}.norm", f"{branch}.post_norm"]
    width = stored.checkpoint.settings.hidden
    return [_norm(stored, role, i, new, width) for role in roles if stored.checkpoint.has(role, i)]


def _feed_forward(stored: Stored, i: int, new: int) -> list[Part]:
    settings, width = stored.checkpoint.settings, stored.checkpoint.settings.hidden
    parts = [
        *_norms(stored, "mlp", i, new),
        Part("rotation and sums", activations=stored.value * 3 * new * width, operators=1),
    ]
    if not settings.experts_of[i]:
        return [*parts, _gated(stored, "dense", i, new)]
    parts += _mixture(stored, i, new)
    if stored.checkpoint.has("shared.down", i):
        parts.append(_gated(stored, "shared", i, new))
    return parts


def _gated(stored: Stored, layer: str, i: int, new: int) -> Part:
    """A layer that every token passes; of a shared one the gate and the sum too."""
    width, inner = stored.shape(f"{layer}.down", i)
    roles = [role for part in ("gate_up", "gate", "up", "down") if stored.checkpoint.has(role := f"{layer}.{part}", i)]
    router = f"{layer}.router"
    gated = stored.checkpoint.has(router, i)
    roles += [router] if gated else []
    return Part(
        "experts" if layer == "shared" else "dense layers",
        2 * new * (3 * width * inner + (width if gated else 0)),
        sum(stored.read(role, i) for role in roles),
        stored.value * new * (5 * width + 6 * inner),
        len(roles) + sum(stored.casts(role, i) for role in roles) + 3,
    )


def _mixture(stored: Stored, i: int, new: int) -> list[Part]:
    settings, value = stored.checkpoint.settings, stored.value
    width, experts, k = settings.hidden, settings.experts_of[i], settings.top_k[i]
    inner = inner_width(stored.checkpoint, i)
    touched = expected_experts(experts, k, new)
    slots = new * k
    moved = slots * (5 * width + 6 * inner) + 2 * new * width + 2 * new * experts
    return [
        Part(
            "router",
            2 * new * width * experts,
            stored.read("router", i),
            value * new * (width + 3 * experts),
            1 + stored.casts("router", i) + int(not settings.norm_top_k or not stored.form.fused),
        ),
        Part(
            "experts",
            2 * slots * 3 * width * inner,
            touched * stored.read_expert(i),
            value * moved,
            _expert_operators(stored, i, touched, stored.expert_casts(i)),
        ),
    ]


def _expert_operators(stored: Stored, i: int, touched: float, casts: int) -> float:
    """One where the form has a fused operator. Else sorting and joining, and six per expert; experts whose weights are
    cast are taken one after another, those that tokens need (of wide matrices, which are cut, somewhat more)."""
    if stored.form.fused:
        return 1.0
    settings = stored.checkpoint.settings
    norm = 2 * int(settings.norm_top_k)
    return 9 + norm + 27 * touched if casts else 16 + norm + 6.0 * settings.experts_of[i]
