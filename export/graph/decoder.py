"""`text.onnx`: the decoder with its cache. Embeddings come in for image models, token ids for text models.

The residual stream stays [n, d], n = batch * new tokens, so that every projection is one Gemm on a stored weight.
The static graphs (`prefill.onnx`, `decode.onnx`) are the same decoder for one sequence with every size fixed.
"""

from collections.abc import Callable

from export.graph.attention import attention
from export.graph.builder import FLOAT, INT64, Graph
from export.graph.context import Static, attention_context, static_context
from export.graph.feed_forward import feed_forward
from export.graph.norm import rms_norm
from transform.checkpoint import Checkpoint
from transform.forms import Form
from transform.packed_layout import activations_of

Sizes = tuple[int | str, int | str, int | str, int | str]
DYNAMIC: Sizes = ("batch", "sequence", "past", "total")


def text_graph(checkpoint: Checkpoint, form: Form, static: Static | None = None) -> Graph:
    """The whole decoder of a checkpoint.

    With `static` it takes `past_length` [1], the slot of the first new token, and gives the logits of one row alone:
    of the row `logits_index` [1] where there are several.
    """
    settings, facts = checkpoint.settings, checkpoint.graph
    g = Graph("text", form, fixed=static is not None, activations=activations_of(checkpoint.config))
    sizes: Sizes = (1, static.sequence, static.cache, static.cache) if static else DYNAMIC
    batch, new, held, total = sizes
    modality = checkpoint.architecture.modality
    if modality.sees_images:
        given = g.input(modality.decoder_input, g.compute, [batch, new, settings.hidden])
        hidden = given
    else:
        given = g.input(modality.decoder_input, INT64, [batch, new])
        ids = g.op("Max", given, g.int(0))  # padding of -1 is embedded as id 0
        hidden = g.scaled(g.rows(checkpoint.tensor("embedding"), ids), facts.embedding)
    mask = g.input("attention_mask", INT64, [batch, total])
    size = [settings.kv_heads, settings.head_dim]
    past = [
        tuple(
            g.input(f"past_key_values.{i}.{part}", g.compute, [batch, size[0], held, size[1]])
            for part in ("key", "value")
        )
        for i in range(settings.layers)
    ]
    if static:
        length = g.input("past_length", INT64, [1])
        context = static_context(g, settings, facts.rope, settings.windows, static, mask, length)
    else:
        batch_and_new = g.op("Shape", given, start=0, end=2)
        sinks = any(checkpoint.has("attention.sinks", i) for i in range(settings.layers))
        context = attention_context(g, settings, facts.rope, settings.windows, batch_and_new, mask, sinks)
    x = g.op("Reshape", hidden, g.ints(-1, settings.hidden))  # [n, d]
    present: list[tuple[str, str]] = []
    for i in range(settings.layers):

        def attend(normed: str, i: int = i) -> str:
            mixed, keys, values = attention(g, checkpoint, facts, i, normed, context, (past[i][0], past[i][1]))
            present.append((keys, values))
            return mixed

        x = _branch(g, checkpoint, "attention", i, x, attend)

        def feed(normed: str, i: int = i) -> str:
            return feed_forward(g, checkpoint, i, normed)

        x = _branch(g, checkpoint, "mlp", i, x, feed)
    if static and static.sequence > 1:
        x = g.op("Gather", x, g.input("logits_index", INT64, [1]), axis=0)  # [1, d]
    head = checkpoint.head
    logits = g.linear(rms_norm(g, x, checkpoint.tensor("norm"), settings.eps), head, checkpoint.find("head.bias"))
    vocab = head.shape[0]
    shape = g.ints(1, 1, vocab) if static else g.op("Concat", batch_and_new, g.ints(vocab), axis=0)
    if g.compute != FLOAT:
        logits = g.op("Cast", logits, to=FLOAT)
    if facts.logits != 1.0:
        logits = g.op("Div", logits, g.float32(facts.logits))
    g.output("logits", g.named("logits", "Reshape", logits, shape), FLOAT, [batch, 1 if static else new, vocab])
    for i, pair in enumerate(present):
        for part, value in zip(("key", "value"), pair, strict=True):
            g.output(f"present.{i}.{part}", value, g.compute, [batch, size[0], total, size[1]])
    return g


def _branch(g: Graph, checkpoint: Checkpoint, name: str, i: int, x: str, work: Callable[[str], str]) -> str:
    """x + work(x), normed before the work, behind it or both, as the block has norms."""
    before, behind = checkpoint.find(f"{name}.norm", i), checkpoint.find(f"{name}.post_norm", i)
    eps = checkpoint.settings.eps
    found = work(x if before is None else rms_norm(g, x, before, eps))
    if behind is not None:
        found = rms_norm(g, found, behind, eps)
    return g.op("Add", x, g.scaled(found, checkpoint.graph.residual))
