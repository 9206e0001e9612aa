"""Arithmetic as GPU kernels do it: 16-bit operands, float32 inside, one rounding at the end.

Weights are read a few rows at a time, so that a mapped file stays where it is. n rows, K in, N out.
"""

from dataclasses import dataclass

import numpy as np
from ml_dtypes import bfloat16

from transform.arrays import Array

HALVES = (np.dtype(np.float16), np.dtype(bfloat16))
FLOATS = (*HALVES, np.dtype(np.float32), np.dtype(np.float64))
CHUNK = 1 << 22  # weights widened at once: 16 MB


@dataclass(frozen=True)
class Packed:
    """[N, K] weights as unsigned codes of 4 or 8 bits, low bits first: (code - 2^(bits-1)) * scale of the block."""

    codes: Array  # uint8 [N, K * bits / 8], or as many bytes in another shape
    scales: Array  # [N, blocks]
    bits: int
    block: int
    shape: tuple[int, int]

    def __getitem__(self, rows: slice) -> Array:
        """Rows in float32."""
        count, width = self.shape
        codes = self.codes.reshape(count, -1)[rows]
        if self.bits == 4:
            codes = np.stack((codes & 15, codes >> 4), axis=-1).reshape(len(codes), -1)
        values = codes[:, :width].astype(np.float32) - np.float32(1 << (self.bits - 1))
        scales = self.scales.reshape(count, -1)[rows].astype(np.float32)
        return values * np.repeat(scales, self.block, axis=1)[:, :width]


def linear(x: Array, weight: Array | Packed) -> Array:
    """x W^T for x [n, K] and W [N, K] -> float32 [n, N]."""
    count, width = weight.shape
    x = wide(x)
    result = np.empty((len(x), count), np.float32)
    step = max(1, CHUNK // max(1, width))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        result[:, rows] = x @ wide(weight[rows]).T
    return result


def wide(values: Array) -> Array:
    """16 bits in float32; anything else as it is."""
    return values.astype(np.float32) if values.dtype in HALVES else values


def softmax(values: Array) -> Array:
    """Over the last axis, in float32."""
    values = wide(values)
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(values: Array) -> Array:
    """1 / (1 + e^-x), in float32; e^-x may overflow, which gives the right 0."""
    one = np.float32(1)
    return one / (one + np.exp(-wide(values)))
