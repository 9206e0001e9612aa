"""One layer at real widths: the fused float16 experts against PyTorch in float32 and in float16."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from export.gate.op_checks import run_checks
from export.gate.op_rig import block_graph
from export.run.providers import CPU, CUDA
from tests.gpu.rows import Context, Row, open_graph
from tests.gpu.synthetic import Sizes, write_noise
from transform.arrays import Array
from transform.checkpoint import Checkpoint, Tensor
from transform.forms import form_named
from transform.read import read_checkpoint
from transform.top_k import set_top_k

LIMIT = 5e-3  # of the largest value that the experts add
WIDTHS, COUNTS = (8, 4, 2, 1), (1, 9, 512)
TINY = Sizes(width=64, inner=32, experts=16, heads=4, vocab=16)


def measure_operators(ctx: Context) -> Iterator[Row]:
    """The self-tests that an export runs, on the device."""
    settings = read_checkpoint(write_noise(ctx.work / "operators", TINY)).settings
    for form in map(form_named, ("cuda", "cpu")):
        for check in run_checks(form, settings, CUDA if ctx.cuda else CPU):
            yield Row(f"{form.name}: {check.operator}, {check.what}", check.difference, check.limit)


def measure(ctx: Context) -> Iterator[Row]:
    """Differences for every k and number of tokens, relative to the largest value that the experts add."""
    sizes = Sizes(vocab=256) if ctx.cuda else TINY
    whole = read_checkpoint(write_noise(ctx.work / "layer", sizes, 0.05 if ctx.cuda else 0.25))
    weights = Weights(whole, "cuda" if ctx.cuda else "cpu")
    many = np.random.default_rng(3).standard_normal((8 * max(COUNTS), sizes.width)).astype(np.float16)
    for k in WIDTHS:
        checkpoint = set_top_k(whole, k)
        x = clear(weights, many, k)
        for count in COUNTS:
            wide, half = weights.block(x[:count], k, "float32"), weights.block(x[:count], k, "float16")
            scale = float(np.abs(wide - x[:count]).max())
            for rows in ("n", count) if k == max(WIDTHS) else ("n",):
                ours = run(checkpoint, ctx, rows, x[:count])
                what = f"k {k}, {count} tokens" + ("" if rows == "n" else ", fixed shapes")
                yield Row(f"{what}: to float32", np.abs(ours - wide).max() / scale, LIMIT)
                yield Row(f"{what}: to float16", np.abs(ours - half).max() / scale, LIMIT)
            yield Row(f"k {k}, {count} tokens: PyTorch float16 to float32", np.abs(half - wide).max() / scale)


def run(checkpoint: Checkpoint, ctx: Context, rows: int | str, x: Array) -> Array:
    """The block by onnxruntime, on weights in place."""
    path: Path = checkpoint.path / "block.onnx"
    block_graph(checkpoint, form_named("cuda"), rows).write(path)
    return open_graph(path, ctx).run(None, {"x": x})[0].astype(np.float32)


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
