"""Decode time against k and depth, at real widths with weights of noise. Batch 1, medians.

One checkpoint of as many blocks as disk, memory and device hold; every setting is a graph over that one file.
"""

import gc
import shutil
import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np

from export.files.io_spec import write_io
from export.graph.emit import emit_graphs
from tests.gpu.environment import used_memory
from tests.gpu.rows import Context, NotAvailableError, Row, attempted
from tests.gpu.synthetic import Sizes, write_noise
from transform.checkpoint import Checkpoint
from transform.depth import drop_blocks
from transform.forms import Form, form_named
from transform.machine import free_memory
from transform.read import read_checkpoint
from transform.top_k import set_top_k

DEPTHS, WIDTHS = (16, 12, 8, 4, 2), (8, 4, 2, 1)
PROMPT, WARM, STEPS = 512, 8, 48
GB = 1e9


def fitting(ctx: Context) -> Sizes:
    """As many blocks as there is room for: half of the free disk, half of the free memory, two thirds of the device."""
    if not ctx.cuda:
        return Sizes(layers=2, width=64, inner=32, experts=16, heads=4, vocab=64)
    import torch

    device = torch.cuda.mem_get_info()[0]
    room = min(shutil.disk_usage(ctx.work).free / 2, free_memory() / 2, device * 2 / 3)
    for layers in DEPTHS:
        if Sizes(layers=layers).nbytes() <= room:
            return Sizes(layers=layers)
    least = Sizes(layers=DEPTHS[-1]).nbytes()
    raise NotAvailableError(f"{least / GB:.1f} GB are needed, there is room for {room / GB:.1f}")


def measure(ctx: Context) -> Iterator[Row]:
    """k 8, 4, 2, 1 with all blocks, then fewer blocks at k 8, and the ratios."""
    sizes = fitting(ctx)
    began = perf_counter()
    whole = read_checkpoint(write_noise(ctx.work / f"noise-{sizes.layers}", sizes))
    yield Row("blocks", str(sizes.layers))
    yield Row("weights", whole_bytes(whole) / GB, unit="GB")
    yield Row("writing them", perf_counter() - began, unit="s")
    times: dict[tuple[int, int], float] = {}
    depths = [layers for layers in (16, 12, 8) if layers < sizes.layers] or [max(1, sizes.layers // 2)]
    for layers, k in [(sizes.layers, k) for k in WIDTHS] + [(layers, WIDTHS[0]) for layers in depths]:
        variant = set_top_k(drop_blocks(whole, tuple(range(layers))), k)
        what = f"k {k}, {layers} blocks"
        for row in attempted(what, one(ctx, variant, what, form_named(ctx.form))):
            if row.what.endswith("decode step"):
                times[layers, k] = float(row.value)
            yield row
    first = (sizes.layers, WIDTHS[0])
    pairs = [((sizes.layers, more), (sizes.layers, less)) for more, less in pairwise(WIDTHS)]
    for more, less in pairs + [(first, (layers, WIDTHS[0])) for layers in depths]:
        if more in times and less in times:
            names = [f"k {k}" if more[0] == less[0] else f"{layers} blocks" for layers, k in (more, less)]
            yield Row(f"decode, {' / '.join(names)}", times[more] / times[less], unit="times")


def whole_bytes(checkpoint: Checkpoint) -> int:
    """Of the weight file."""
    return sum(tensor.nbytes for tensor in checkpoint.tensors.values())


def one(ctx: Context, variant: Checkpoint, what: str, form: Form) -> Iterator[Row]:
    """Load, memory, prefill and decode of one setting, with the cache left on the device."""
    from export.run.bound import Bound
    from export.run.graphs import Graphs

    directory: Path = variant.path
    emit_graphs(variant, directory, None, form)
    write_io(variant, directory, form)
    before, began = used_memory(), perf_counter()
    graphs = Graphs(directory, ctx.provider, ctx.threads)
    _ = graphs.text
    yield Row(f"{what}: load", perf_counter() - began, unit="s")
    random = np.random.default_rng(0)
    prompt = PROMPT if ctx.cuda else 16
    ids = random.integers(1, variant.settings.vocab, (1, prompt))
    prefills = []
    for _again in range(3):
        sequence, began = Bound(graphs), perf_counter()
        sequence.prefill(ids)
        prefills.append(perf_counter() - began)
    yield Row(f"{what}: prefill of {prompt} tokens", 1e3 * min(prefills), unit="ms")
    steps = []
    for _again in range(WARM + (STEPS if ctx.cuda else 4)):
        token, began = int(random.integers(1, variant.settings.vocab)), perf_counter()
        sequence.decode(token)
        steps.append(perf_counter() - began)
    yield Row(f"{what}: decode step", 1e3 * statistics.median(steps[WARM:]), unit="ms")
    after = used_memory()
    if before is not None and after is not None:
        yield Row(f"{what}: device memory", (after - before) / 1e3, unit="GB")
    del graphs, sequence
    gc.collect()
