"""Static graphs with and without a captured CUDA graph: the same logits, and what a step then takes."""

import gc
import statistics
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from tests.gpu.model import PROMPT, TOKENS, compare, exported, probe_ids, torch_logits
from tests.gpu.rows import Context, NotAvailableError, Row, attempted
from tests.gpu.speed import STEPS, WARM, fitting
from tests.gpu.synthetic import write_noise
from transform.arrays import Array
from transform.forms import form_named
from transform.read import read_checkpoint

CACHE = 640
ALIKE = 1e-2  # each session picks its experts' kernels by their speed, so two of them differ as float16 does


def measure(ctx: Context) -> Iterator[Row]:
    """The embedded model against PyTorch, then steps at real widths."""
    try:
        import export.run.static  # noqa: F401
    except ImportError as error:
        raise NotAvailableError("there are no static graphs in this version") from error
    directory = exported(ctx, "--static", str(CACHE))
    ids = probe_ids(read_checkpoint(directory).settings.vocab)
    theirs = torch_logits(directory, ids)[PROMPT - 1 :]
    found: dict[bool, Array] = {}
    for captured in (False, True) if ctx.cuda else (False,):
        yield from attempted(words(captured), measure_logits(ctx, directory, captured, ids, theirs, found))
    if len(found) > 1:
        difference = np.abs(found[True] - found[False]).max() / np.abs(theirs).max()
        yield Row("captured or not: logits differ by", float(difference), ALIKE)
    yield from attempted("steps", measure_steps(ctx))


def measure_logits(
    ctx: Context, directory: Path, captured: bool, ids: Array, theirs: Array, found: dict[bool, Array]
) -> Iterator[Row]:
    """Against PyTorch; `found` gets what came out."""
    found[captured] = steps(opened(directory, ctx, captured), ids)
    gc.collect()
    yield from compare(found[captured], theirs, words(captured))


def steps(graphs: Any, ids: Array) -> Array:
    """Logits [TOKENS - PROMPT + 1, V]: the prompt's last ones, then one step at a time."""
    rows = [graphs.prefill(ids[None, :PROMPT])]
    rows += [graphs.decode(int(token)) for token in ids[PROMPT:TOKENS]]
    return np.stack(rows).astype(np.float32)


def measure_steps(ctx: Context) -> Iterator[Row]:
    """Decode steps of the model of noise, as static graphs."""
    from export.files.io_spec import write_io
    from export.graph.emit import emit_graphs
    from export.graph.static import write_static
    from export.run.static_plan import Prefill, StaticPlan

    sizes = fitting(ctx)
    checkpoint = read_checkpoint(write_noise(ctx.work / f"noise-{sizes.layers}", sizes))
    plan = StaticPlan(CACHE, (Prefill(None, 128 if ctx.cuda else 16),))
    emit_graphs(checkpoint, checkpoint.path, None, form_named(ctx.form))
    write_static(checkpoint, checkpoint.path, plan, form_named(ctx.form))
    write_io(checkpoint, checkpoint.path, form_named(ctx.form), static=plan)
    random = np.random.default_rng(0)
    medians: dict[bool, float] = {}

    def step(captured: bool) -> Iterator[Row]:
        graphs = opened(checkpoint.path, ctx, captured)
        graphs.prefill(random.integers(1, sizes.vocab, (1, plan.prefills[0].sequence)))
        times = []
        for _ in range(WARM + (STEPS if ctx.cuda else 2)):
            token, began = int(random.integers(1, sizes.vocab)), perf_counter()
            graphs.decode(token)
            times.append(perf_counter() - began)
        medians[captured] = 1e3 * statistics.median(times[WARM:])
        yield Row(f"{words(captured)}: decode step, k {sizes.k}, {sizes.layers} blocks", medians[captured], unit="ms")

    for captured in (False, True) if ctx.cuda else (False,):
        yield from attempted(f"{words(captured)} steps", step(captured))
        gc.collect()
    if len(medians) > 1:
        yield Row("decode, launched / captured", medians[False] / medians[True], unit="times")


def opened(directory: Path, ctx: Context, captured: bool) -> Any:
    """StaticGraphs that do or don't replay a captured CUDA graph."""
    from export.run.static import StaticGraphs

    graphs = StaticGraphs(directory, ctx.provider, ctx.threads)
    for _, options in graphs.io["providers"][ctx.provider]:
        if "enable_cuda_graph" in options:
            options["enable_cuda_graph"] = str(int(captured))
    return graphs


def words(captured: bool) -> str:
    """For the rows' names."""
    return "captured" if captured else "launched"
