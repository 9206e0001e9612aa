"""`text.onnx`: the decoder with its cache. Embeddings come in for image models, token ids for text models.

The residual stream stays [n, d], n = batch * new tokens, so that every projection is one Gemm on a stored weight.
The static graphs (`prefill.onnx`, `decode.onnx`) are the same decoder for one sequence with every size fixed.
"""

from export.graph.attention import attention
from export.graph.builder import FLOAT, INT64, Graph
from export.graph.context import Static, attention_context, static_context
from export.graph.moe import mixture
from export.graph.norm import rms_norm
from transform.checkpoint import Checkpoint
from transform.forms import REFERENCE, Form
from transform.packed_layout import activations_of

Sizes = tuple[int | str, int | str, int | str, int | str]
DYNAMIC: Sizes = ("batch", "sequence", "past", "total")


def text_graph(checkpoint: Checkpoint, form: Form = REFERENCE, static: Static | None = None) -> Graph:
    """The whole decoder of a checkpoint.

    With `static` it takes `past_length` [1], the slot of the first new token, and gives the logits of one row alone:
    of the row `logits_index` [1] where there are several.
    """
    settings = checkpoint.settings
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
        hidden = g.rows(checkpoint.tensor("embedding"), ids)
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
        context = static_context(g, settings, static, mask, g.input("past_length", INT64, [1]))
    else:
        batch_and_new = g.op("Shape", given, start=0, end=2)
        context = attention_context(g, settings, batch_and_new, mask)
    x = g.op("Reshape", hidden, g.ints(-1, settings.hidden))  # [n, d]
    present: list[tuple[str, str]] = []
    for i in range(settings.layers):
        normed = rms_norm(g, x, checkpoint.tensor("attention.norm", i), settings.eps)
        mixed, keys, values = attention(g, checkpoint, i, normed, context, (past[i][0], past[i][1]))
        present.append((keys, values))
        x = g.op("Add", x, mixed)
        normed = rms_norm(g, x, checkpoint.tensor("mlp.norm", i), settings.eps)
        x = g.op("Add", x, mixture(g, checkpoint, i, normed))
    if static and static.sequence > 1:
        x = g.op("Gather", x, g.input("logits_index", INT64, [1]), axis=0)  # [1, d]
    head = checkpoint.tensor("head")
    logits = g.linear(rms_norm(g, x, checkpoint.tensor("norm"), settings.eps), head)
    vocab = head.shape[0]
    shape = g.ints(1, 1, vocab) if static else g.op("Concat", batch_and_new, g.ints(vocab), axis=0)
    if g.compute != FLOAT:
        logits = g.op("Cast", logits, to=FLOAT)
    g.output("logits", g.named("logits", "Reshape", logits, shape), FLOAT, [batch, 1 if static else new, vocab])
    for i, pair in enumerate(present):
        for part, value in zip(("key", "value"), pair, strict=True):
            g.output(f"present.{i}.{part}", value, g.compute, [batch, size[0], total, size[1]])
    return g
