"""One layer at real widths: the fused float16 experts against PyTorch in float32 and in float16."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from export.gate.op_checks import run_checks
from export.gate.op_rig import block_graph
from export.graph.builder import CONTRIB, Graph
from export.graph.moe import SWIGLU, mixture
from export.run.providers import CPU, CUDA
from tests.gpu.rows import FUSED, Context, Row, attempted, open_graph
from tests.gpu.synthetic import Sizes, write_noise
from transform.arrays import Array
from transform.checkpoint import Checkpoint, Tensor
from transform.forms import REFERENCE, Form, form_named
from transform.read import read_checkpoint
from transform.top_k import set_top_k

LIMIT = 5e-3  # of the largest value that the experts add
WIDTHS, COUNTS = (8, 4, 2, 1), (1, 9, 512)
Experts = Callable[[Graph, Checkpoint, int, str], str]
Attributes = Mapping[str, str | int | float]
TINY = Sizes(width=64, inner=32, experts=16, heads=4, vocab=16)


def measure_operators(ctx: Context) -> Iterator[Row]:
    """The self-tests that an export runs, on the device."""
    settings = read_checkpoint(write_noise(ctx.work / "operators", TINY)).settings
    for form in map(form_named, ("cuda", "cpu")):
        for check in run_checks(form, settings, CUDA if ctx.cuda else CPU):
            yield Row(f"{form.name}: {check.operator}, {check.what}", check.difference, check.limit)


def measure(ctx: Context) -> Iterator[Row]:
    """Differences for every k and number of tokens, relative to the largest value that the experts add; times of calls.

    The operator's other two orders of weights are facts: which of its kernels run is decided by their speed here.
    """
    sizes, scale = (Sizes(vocab=256), 0.05) if ctx.cuda else (TINY, 0.25)
    whole = read_checkpoint(write_noise(ctx.work / "layer", sizes, scale))
    weights = Weights(whole, "cuda" if ctx.cuda else "cpu")
    many = np.random.default_rng(3).standard_normal((8 * max(COUNTS), sizes.width)).astype(np.float16)
    for k in WIDTHS:
        x = clear(weights, many, k)
        yield from attempted(f"k {k}", compared(ctx, set_top_k(whole, k), weights, x, k))
        for name, experts in {"gate and up in halves": halves, "three matrices": three_matrices}.items():
            what = f"k {k}, {name}"
            yield from attempted(what, other_order(ctx, set_top_k(whole, k), weights, x, what, experts))
    if ctx.cuda:
        yield from attempted("cpu form", looped(ctx, whole, weights, many))


def compared(ctx: Context, checkpoint: Checkpoint, weights: "Weights", x: Array, k: int) -> Iterator[Row]:
    """The block as the form has it, at one k."""
    for rows in ("n", *COUNTS) if k == max(WIDTHS) else ("n",):
        session = opened(checkpoint, ctx, rows)
        for count in COUNTS if rows == "n" else (int(rows),):
            wide, half = weights.block(x[:count], k, "float32"), weights.block(x[:count], k, "float16")
            scale = float(np.abs(wide - x[:count]).max())
            ours = run(session, x[:count])
            what = f"k {k}, {count} tokens" + ("" if rows == "n" else ", fixed shapes")
            yield Row(f"{what}: to float32", np.abs(ours - wide).max() / scale, LIMIT)
            yield Row(f"{what}: to float16", np.abs(ours - half).max() / scale, LIMIT)
            if rows == "n":
                yield Row(f"{what}: PyTorch float16 to float32", np.abs(half - wide).max() / scale)
                yield Row(f"{what}: call", timed(session, x[:count], ctx), unit="ms")


def other_order(
    ctx: Context, checkpoint: Checkpoint, weights: "Weights", x: Array, what: str, experts: Experts
) -> Iterator[Row]:
    """The block on another order of the same weights."""
    session, k = opened(checkpoint, ctx, "n", experts), checkpoint.settings.top_k[0]
    for count in COUNTS:
        wide = weights.block(x[:count], k, "float32")
        difference = np.abs(run(session, x[:count]) - wide).max() / np.abs(wide - x[:count]).max()
        yield Row(f"{what}, {count} tokens: to float32", difference)
        yield Row(f"{what}, {count} tokens: call", timed(session, x[:count], ctx), unit="ms")


def looped(ctx: Context, whole: Checkpoint, weights: "Weights", many: Array) -> Iterator[Row]:
    """The cpu form's experts, float16 weights that are widened in a Loop: float32 by another way."""
    for k in WIDTHS:
        checkpoint, x = set_top_k(whole, k), clear(weights, many, k)
        session = opened(checkpoint, ctx, "n", form=REFERENCE)
        for count in (1, 9):
            given = x[:count].astype(np.float32)
            wide = weights.block(given, k, "float32")
            difference = np.abs(run(session, given) - wide).max() / np.abs(wide - given).max()
            yield Row(f"k {k}, {count} tokens, cpu form: to float32", difference, 1e-4)
            yield Row(f"k {k}, {count} tokens, cpu form: call", timed(session, given, ctx), unit="ms")


def halves(g: Graph, checkpoint: Checkpoint, i: int, x: str) -> str:
    """The fused operator on all gate rows of an expert, then all its up rows."""
    experts, (inner, width) = checkpoint.settings.experts, checkpoint.tensor("expert.gate", i).shape
    rows = [g.op("Reshape", stack(g, checkpoint, i, part), g.ints(experts, inner, width)) for part in ("gate", "up")]
    fused = {**SWIGLU, "swiglu_fusion": 2}
    operands = (g.op("Concat", *rows, axis=1), "", stack(g, checkpoint, i, "down"))
    return operator(g, checkpoint, i, x, operands, fused)


def three_matrices(g: Graph, checkpoint: Checkpoint, i: int, x: str) -> str:
    """The fused operator on gates and ups as arrays of their own (FC3)."""
    gate, down, up = (stack(g, checkpoint, i, part) for part in ("gate", "down", "up"))
    return operator(g, checkpoint, i, x, (gate, "", down, "", up), {"activation_type": "silu"})


def stack(g: Graph, checkpoint: Checkpoint, i: int, part: str) -> str:
    """One matrix of every expert."""
    return g.stack([checkpoint.tensor(f"expert.{part}", i, e) for e in range(checkpoint.settings.experts)])


def operator(
    g: Graph,
    checkpoint: Checkpoint,
    i: int,
    x: str,
    operands: Sequence[str],
    attributes: Mapping[str, str | int | float],
) -> str:
    """`MoE` behind its router."""
    logits, k = g.linear(x, checkpoint.tensor("router", i)), checkpoint.settings.top_k[i]
    return g.op("MoE", x, logits, *operands, domain=CONTRIB, k=k, normalize_routing_weights=0, **attributes)


def opened(
    checkpoint: Checkpoint, ctx: Context, rows: int | str, experts: Experts = mixture, form: Form = FUSED
) -> Any:
    """A session of the block, on weights in place."""
    path: Path = checkpoint.path / "block.onnx"
    block_graph(checkpoint, form, rows, experts).write(path)
    return open_graph(path, ctx, form)


def run(session: Any, x: Array) -> Array:
    """The block's result in float32."""
    return session.run(None, {"x": x})[0].astype(np.float32)


def timed(session: Any, x: Array, ctx: Context) -> float:
    """The median of 30 calls in milliseconds, with input and output on the device; without one, of a single call."""
    if not ctx.cuda:
        began = perf_counter()
        session.run(None, {"x": x})
        return 1e3 * (perf_counter() - began)
    import onnxruntime

    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x, "cuda", 0))
    binding.bind_output("y", "cuda")
    times = []
    for _ in range(40):
        began = perf_counter()
        session.run_with_iobinding(binding)
        times.append(perf_counter() - began)
    return 1e3 * statistics.median(times[10:])


def clear(weights: "Weights", x: Array, k: int) -> Array:
    """The tokens whose choice of experts is clearest: between equals two correct programs may differ."""
    logits = np.sort(weights.logits(x), axis=1)[:, ::-1]
    lead = logits[:, k - 1] - logits[:, k]
    return x[np.argsort(-lead)[: max(COUNTS)]]


class Weights:
    """One block in PyTorch, written out plainly; n tokens, E experts."""

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self.torch, self.device, self.eps = torch, device, checkpoint.settings.eps
        self.norm, self.router = (self._load(checkpoint.tensor(role, 0)) for role in ("mlp.norm", "router"))
        every = range(checkpoint.settings.experts)
        self.experts = [
            [self._load(checkpoint.tensor(f"expert.{part}", 0, e)) for part in ("gate", "up", "down")] for e in every
        ]

    def _load(self, tensor: Tensor) -> Any:
        values = np.memmap(tensor.file, np.float16, "r", tensor.start, tensor.shape)
        return self.torch.from_numpy(np.array(values)).to(self.device)

    def _normed(self, x: Any) -> Any:
        wide = x.float()
        return (wide * self.torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.norm

    def logits(self, x: Array) -> Array:
        """[n, d] -> [n, E] in float32."""
        given = self.torch.from_numpy(x).to(self.device).float()
        return (self._normed(given) @ self.router.float().T).cpu().numpy()

    def block(self, x: Array, k: int, dtype: str) -> Array:
        """x + experts(norm(x)) computed in `dtype`, from float16 weights."""
        torch, kind = self.torch, getattr(self.torch, dtype)
        given = torch.from_numpy(x).to(self.device, kind)
        normed = self._normed(given).to(kind)
        shares, chosen = torch.softmax((normed @ self.router.to(kind).T).float(), -1).topk(k, -1)
        added = torch.zeros(given.shape, device=self.device)
        for e, parts in enumerate(self.experts):
            rows, ranks = torch.where(chosen == e)
            if len(rows):
                gate, up, down = (part.to(kind) for part in parts)
                inner = torch.nn.functional.silu(normed[rows] @ gate.T) * (normed[rows] @ up.T)
                added.index_add_(0, rows, (inner @ down.T).float() * shares[rows, ranks, None])
        return (given + added.to(kind)).float().cpu().numpy()
