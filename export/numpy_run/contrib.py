"""onnxruntime's other operators that graphs use: products, rows of tables, norms and an activation."""

import numpy as np
from onnx.reference.op_run import OpRun

from export.graph.builder import CONTRIB
from export.numpy_run.arithmetic import Packed, linear, sigmoid, wide
from export.numpy_run.experts import MoE, QMoE
from transform.arrays import Array
from transform.errors import VerificationError


class MatMulNBits(OpRun):
    """x W^T (+ b), W [N, K] in codes [N, blocks, block * bits / 8] and scales [N, blocks]; activations stay floats."""

    op_domain = CONTRIB

    def _run(
        self, x: Array, codes: Array, scales: Array, zeros: Array | None = None, order: Array | None = None,
        bias: Array | None = None, K: int = 0, N: int = 0, bits: int = 4, block_size: int = 0,  # noqa: N803
        accuracy_level: int = 0,  # noqa: ARG002
    ) -> tuple[Array]:  # fmt: skip
        if zeros is not None or order is not None:
            raise VerificationError("numpy runs MatMulNBits without zero points and indices.")
        weight = Packed(codes, scales, bits, block_size, (N, K))
        result = linear(x.reshape(-1, K), weight).reshape(*x.shape[:-1], N)
        if bias is not None:
            result = result + bias
        return (result.astype(x.dtype, copy=False),)


class GatherBlockQuantized(OpRun):
    """Rows of a table in codes [rows, blocks * block * bits / 8] and scales [rows, blocks], in the scales' type."""

    op_domain = CONTRIB

    def _run(
        self, codes: Array, indices: Array, scales: Array, zeros: Array | None = None, gather_axis: int = 0,
        quantize_axis: int = 1, block_size: int = 128, bits: int = 4,
    ) -> tuple[Array]:  # fmt: skip
        if zeros is not None or gather_axis != 0 or quantize_axis not in (1, -1) or codes.ndim != 2:
            raise VerificationError("numpy runs GatherBlockQuantized on rows of a table, without zero points.")
        chosen, steps = (part[indices.reshape(-1)] for part in (codes, scales))
        width = steps.shape[1] * block_size
        table = Packed(chosen, steps, bits, block_size, (len(chosen), width))
        return (table[:].reshape(*indices.shape, width).astype(scales.dtype, copy=False),)


class SimplifiedLayerNormalization(OpRun):
    """x / sqrt(mean(x^2) + epsilon) over the last axis, rounded, then the weight."""

    def _run(self, x: Array, scale: Array, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> tuple[Array]:
        if axis not in (-1, x.ndim - 1) or stash_type != 1:
            raise VerificationError(f"numpy normalises the last axis in float32; got axis {axis}, type {stash_type}.")
        return (_rms_norm(x, scale, epsilon),)


class SkipSimplifiedLayerNormalization(OpRun):
    """The norm of x + skip (+ bias), and as the fourth output that sum."""

    op_domain = CONTRIB

    def _run(
        self, x: Array, skip: Array, scale: Array, bias: Array | None = None, epsilon: float = 1e-5
    ) -> tuple[Array, ...]:
        total = x + skip if bias is None else x + skip + bias
        unused = np.zeros(0, np.float32)  # mean and deviation, for training alone
        return _rms_norm(total, scale, epsilon), unused, unused, total


class FusedMatMul(OpRun):
    """alpha A B^T over the last two axes (or A B), alpha in float32."""

    op_domain = CONTRIB

    def _run(self, a: Array, b: Array, alpha: float = 1.0, transA: int = 0, transB: int = 0) -> tuple[Array]:  # noqa: N803
        left, right = (np.swapaxes(wide(m), -1, -2) if flip else wide(m) for m, flip in ((a, transA), (b, transB)))
        return ((np.float32(alpha) * np.matmul(left, right)).astype(a.dtype, copy=False),)


class QuickGelu(OpRun):
    """x sigmoid(alpha x), inside in float32."""

    op_domain = CONTRIB

    def _run(self, x: Array, alpha: float = 1.702) -> tuple[Array]:
        values = wide(x)
        return ((values * sigmoid(np.float32(alpha) * values)).astype(x.dtype, copy=False),)


def _rms_norm(x: Array, scale: Array, epsilon: float) -> Array:
    values = wide(x)
    mean = np.mean(values * values, axis=-1, keepdims=True, dtype=np.float32)
    return (values / np.sqrt(mean + np.float32(epsilon))).astype(scale.dtype, copy=False) * scale


OPERATORS = (
    FusedMatMul,
    GatherBlockQuantized,
    MatMulNBits,
    MoE,
    QMoE,
    QuickGelu,
    SimplifiedLayerNormalization,
    SkipSimplifiedLayerNormalization,
)
