"""The ordinary operators that the reference evaluator computes in 16 bits throughout, or too slowly.

Elementwise ones need no replacement: numpy widens, computes and rounds once, as a kernel does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op

from export.graph.builder import OPSET
from export.numpy_run.arithmetic import HALVES, linear, sigmoid, wide
from transform.arrays import Array

# They add up along an axis; in 16 bits a sum over 1024 values has no digit left.
SUMMING = ("LayerNormalization", "ReduceSum", "Softmax")


class Gemm(OpRun):
    """alpha A' B' + beta C."""

    def _run(
        self, a: Array, b: Array, c: Array | None = None, alpha: float = 1, beta: float = 1, transA: int = 0,  # noqa: N803
        transB: int = 0,  # noqa: N803
    ) -> tuple[Array]:  # fmt: skip
        result = linear(a.T if transA else a, b if transB else b.T)
        if alpha != 1:
            result *= np.float32(alpha)
        if c is not None:
            result += wide(c) if beta == 1 else wide(c) * np.float32(beta)
        return (result.astype(a.dtype, copy=False),)


class MatMul(OpRun):
    """Matrix product over the last two axes."""

    def _run(self, a: Array, b: Array) -> tuple[Array]:
        return (np.matmul(wide(a), wide(b)).astype(a.dtype, copy=False),)


class ReduceMean(OpRun):
    """The mean over `axes`, which were an attribute before opset 18 and are an input since; over all where none are."""

    def _run(
        self, x: Array, given: Array | None = None, axes: Sequence[int] | None = None, keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> tuple[Array]:  # fmt: skip
        along = axes if given is None else given.tolist()
        if not along and noop_with_empty_axes:
            return (x,)
        mean = wide(x).mean(axis=tuple(along) if along else None, keepdims=bool(keepdims))
        return (np.asarray(mean, x.dtype),)


class Sigmoid(OpRun):
    """1 / (1 + e^-x)."""

    def _run(self, x: Array) -> tuple[Array]:
        return (sigmoid(x).astype(x.dtype, copy=False),)


def _widened(kind: str) -> Any:
    """The evaluator's own operator, in float32 inside."""
    base = load_op("", kind, OPSET)

    def run(self: Any, *inputs: Array | None, **attributes: Any) -> tuple[Array, ...]:
        results = base._run(self, *(i if i is None else wide(i) for i in inputs), **attributes)
        dtype = next(i.dtype for i in inputs if i is not None)
        return tuple(r.astype(dtype) for r in results) if dtype in HALVES else results

    return type(kind, (base,), {"_run": run})


STANDARD = (Gemm, MatMul, ReduceMean, Sigmoid, *(_widened(kind) for kind in SUMMING))
