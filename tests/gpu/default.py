"""The form that is taken where none is named, on the device: float32 by ordinary operators, experts in a Loop or one by
one. It is made for a CPU; this says what it gives on a GPU.
"""

import statistics
from collections.abc import Iterator
from time import perf_counter

import numpy as np

from tests.gpu.model import PROMPT, TOKENS, exported, probe_ids, torch_logits
from tests.gpu.rows import Context, Row, attempted
from tests.gpu.speed import fitting, one
from tests.gpu.synthetic import write_noise
from transform.depth import drop_blocks
from transform.forms import REFERENCE
from transform.read import read_checkpoint
from transform.top_k import set_top_k

CLOSE = 1e-4  # of the largest logit, 9 positions of 10: float32 on both sides
BLOCKS = 2  # at real widths


def measure(ctx: Context) -> Iterator[Row]:
    """The embedded model with its experts in 16 and in 32 bits, then blocks of real widths beside the cuda form's."""
    for dtype in ("float16", "float32"):
        yield from attempted(f"embedded model, {dtype}", measure_model(ctx, dtype))
    yield from attempted("real widths", measure_steps(ctx))


def measure_model(ctx: Context, dtype: str) -> Iterator[Row]:
    """Logits against PyTorch's, and the step beside the CPU's."""
    from export.run.graphs import Graphs

    directory = exported(ctx, "--dtype", dtype, form=REFERENCE.name)
    ids = probe_ids(read_checkpoint(directory).settings.vocab)
    theirs = torch_logits(directory, ids)
    times = {}
    for provider in dict.fromkeys((ctx.provider, "cpu")):
        graphs = Graphs(directory, provider, ctx.threads)
        logits, cache = graphs.step(ids[None, :PROMPT], np.ones((1, PROMPT), np.int64), graphs.empty_cache(1))
        rows, taken = [logits[0]], []
        for at in range(PROMPT, TOKENS):
            began = perf_counter()
            logits, cache = graphs.step(ids[None, at : at + 1], np.ones((1, at + 1), np.int64), cache)
            taken.append(perf_counter() - began)
            rows.append(logits[0])
        differences = np.abs(np.concatenate(rows) - theirs).max(axis=-1) / np.abs(theirs).max()
        what = f"embedded model, {dtype}, {provider}"
        yield Row(f"{what}: logits, median difference", float(np.median(differences)), CLOSE)
        yield Row(f"{what}: logits, 9 of 10 within", float(np.quantile(differences, 0.9)), CLOSE)
        times[provider] = statistics.median(taken)
        yield Row(f"{what}: decode step", 1e3 * times[provider], unit="ms")


def measure_steps(ctx: Context) -> Iterator[Row]:
    """Decode steps over the same float16 weights in both forms."""
    sizes = fitting(ctx)
    whole = read_checkpoint(write_noise(ctx.work / f"noise-{sizes.layers}", sizes))
    variant = drop_blocks(whole, tuple(range(min(BLOCKS, sizes.layers))))
    for k in (8, 1):
        for form in dict.fromkeys((REFERENCE, ctx.row)):
            what = f"{form.name} form, k {k}, {variant.settings.layers} blocks"
            yield from attempted(what, one(ctx, set_top_k(variant, k), what, form))
