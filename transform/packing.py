"""Block quantisation as onnxruntime's kernels read it: value = (code - zero) * scale of its block, zero = 2^(bits-1).

Signed scales: a block's value of largest magnitude gets code 0, so that no code is wasted. Scales are rounded to
their stored type before the values are coded: each code is the nearest one for the scale that will be read.
Arithmetic only; which tensors are packed, and where they lie, is `packed.py`'s to say.

n rows, K values per row, G = ceil(K / block) blocks per row.
"""

import numpy as np

from transform.arrays import Array
from transform.errors import CheckpointError

_AT_ONCE = 1 << 17  # values: what is worked on stays in the processor's cache


def encode(values: Array, bits: int, block: int, scale_dtype: str, what: str) -> tuple[Array, Array]:
    """float32 [n, K] -> codes uint8 [n, G, block*bits/8], low bits first, and scales [n, G] of `scale_dtype`.

    Zeros stay zeros; a last block that K does not fill is padded with them. Raises CheckpointError in the name of
    `what` for NaN, infinity, and values whose scale the type can't hold.
    """
    rows, columns = values.shape
    blocks = -(-columns // block)
    codes = np.empty((rows, blocks, block * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), scale_dtype)
    step = max(1, _AT_ONCE // max(1, columns))
    for at in range(0, rows, step):
        part = values[at : at + step]
        if columns % block:
            part = np.pad(part, ((0, 0), (0, blocks * block - columns)))
        part = part.reshape(len(part), blocks, block)
        scales[at : at + step] = chosen = _scales(part, bits, scale_dtype, what)
        codes[at : at + step] = _codes(part, chosen, bits)
    return codes, scales


def decode(codes: Array, scales: Array, bits: int, columns: int) -> Array:
    """Codes [n, ...] and scales [n, G] -> float32 [n, columns], exactly what the kernels multiply with."""
    rows, blocks = scales.shape
    bytes_each = np.arange(256)
    numbers = np.stack((bytes_each & 15, bytes_each >> 4), 1) if bits == 4 else bytes_each[:, None]
    table = (numbers - 2 ** (bits - 1)).astype(np.float32)
    values = table[codes.reshape(rows, -1)].reshape(rows, blocks, -1)
    values *= scales.astype(np.float32)[:, :, None]
    return np.ascontiguousarray(values.reshape(rows, -1)[:, :columns])


def _scales(values: Array, bits: int, dtype: str, what: str) -> Array:
    """[n, G, block] -> [n, G]."""
    zero = 2 ** (bits - 1)
    high, low = values.max(-1), values.min(-1)
    extreme = np.where(high >= -low, high, low)
    if not np.isfinite(extreme).all():
        raise CheckpointError(f"{what}: values to be quantised must be finite, it holds NaN or infinity. Repair it.")
    exact = extreme.astype(np.float64) / -zero
    with np.errstate(over="ignore"):
        stored = exact.astype(dtype)
    if not np.isfinite(stored).all():
        largest = float(np.abs(extreme).max())
        raise CheckpointError(
            f"{what}: its {bits}-bit blocks have {stored.dtype.name} scales, which hold values up to "
            f"{float(np.finfo(dtype).max) * zero:.6g}; the largest is {largest:.6g}. Use --form cpu."
        )
    # So close to 0 the type is coarse: a scale rounded down, or to 0, would cut off the largest values.
    short = (np.abs(stored) < np.abs(exact)) & (np.abs(exact) < np.finfo(dtype).tiny)
    return np.where(short, np.nextafter(stored, np.copysign(np.inf, exact).astype(dtype)), stored)


def _codes(values: Array, scales: Array, bits: int) -> Array:
    """[n, G, block] and their scales [n, G] -> bytes [n, G, block*bits/8]."""
    zero = 2 ** (bits - 1)
    divisor = np.where(scales == 0, 1, scales).astype(np.float32)
    scaled = values / divisor[:, :, None]
    np.rint(scaled, out=scaled)
    scaled += zero
    np.clip(scaled, 0, 2 * zero - 1, out=scaled)
    codes = scaled.astype(np.uint8)
    if bits == 8:
        return codes
    pairs = codes.view("<u2")  # first code in the low byte
    return (pairs | (pairs >> 4)).astype(np.uint8)
