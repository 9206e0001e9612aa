"""onnxruntime's fused mixtures of experts: `MoE` on stored weights, `QMoE` on block-quantised ones.

Only the chosen experts' weights are touched. n tokens, k experts per token, E experts, H width, I inner width.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from export.graph.builder import CONTRIB
from export.numpy_run.arithmetic import Packed, linear, sigmoid, softmax, wide
from transform.arrays import Array
from transform.errors import VerificationError

Weights = Callable[[int], Array | Packed]  # expert -> its matrix


class MoE(OpRun):
    """Softmax over all E logits, the k largest, then fc2(act(fc1 x)) of each: renormalised only on demand."""

    op_domain = CONTRIB

    def _run(self, x: Array, logits: Array, *weights: Array | None, k: int, **attributes: Any) -> tuple[Array]:
        fc1, bias1, fc2, bias2, fc3, bias3 = _filled(weights, 6)
        _without("MoE", {"fc3_experts_bias": bias3})
        assert fc1 is not None and fc2 is not None
        shares = softmax(logits.reshape(-1, logits.shape[-1]))
        chosen = top_k(shares, k)
        shares = np.take_along_axis(shares, chosen, axis=1)
        if attributes.pop("normalize_routing_weights", 0):
            shares /= shares.sum(axis=1, keepdims=True)
        third = None if fc3 is None else fc3.__getitem__
        given = (fc1.__getitem__, fc2.__getitem__, third)
        return (mixed(x, chosen, shares, *given, biases=(bias1, bias2), **attributes),)


class QMoE(OpRun):
    """The same on codes. Without `router_weights` the k chosen weigh by a softmax among themselves."""

    op_domain = CONTRIB

    def _run(
        self, x: Array, logits: Array, *weights: Array | None, k: int, expert_weight_bits: int = 4,
        block_size: int = 0, normalize_routing_weights: int = 0, **attributes: Any,
    ) -> tuple[Array]:  # fmt: skip
        fc1, scales1, bias1, fc2, scales2, bias2, fc3, scales3, bias3, *rest = _filled(weights, 13)
        _without(
            "QMoE", {"fc3_experts_bias": bias3} | {f"fc{i + 1}_zero_points": value for i, value in enumerate(rest[:3])}
        )
        router = rest[3]
        assert fc1 is not None and fc2 is not None and scales1 is not None and scales2 is not None
        logits = wide(logits.reshape(-1, logits.shape[-1]))
        chosen = top_k(logits, k)
        shares = np.take_along_axis(logits if router is None else wide(router.reshape(logits.shape)), chosen, axis=1)
        if router is None:
            shares = softmax(shares)
        elif normalize_routing_weights:
            shares = shares / shares.sum(axis=1, keepdims=True)
        pick = [
            None if codes is None or scales is None else _unpack(codes, scales, expert_weight_bits, block_size)
            for codes, scales in ((fc1, scales1), (fc2, scales2), (fc3, scales3))
        ]
        assert pick[0] is not None and pick[1] is not None
        return (mixed(x, chosen, shares, pick[0], pick[1], pick[2], biases=(bias1, bias2), **attributes),)


def top_k(values: Array, k: int) -> Array:
    """Places [n, k] of the largest values of each row, largest first; of equal ones the lower place."""
    return np.argsort(-values, axis=1, kind="stable")[:, :k]


def mixed(
    x: Array, chosen: Array, shares: Array, fc1: Weights, fc2: Weights, fc3: Weights | None,
    activation_type: str = "relu", activation_alpha: float | None = None, activation_beta: float | None = None,
    swiglu_fusion: int = 0, swiglu_limit: float = np.inf, biases: tuple[Array | None, Array | None] = (None, None),
) -> Array:  # fmt: skip
    """The experts' outputs for x [..., H], weighted by `shares` [n, k]; rounded to x's type where a kernel stores."""
    if activation_type not in ("silu", "swiglu"):
        raise VerificationError(f"numpy runs experts with silu or swiglu, the graph has {activation_type!r}.")
    alpha, beta = 1.0, 0.0
    if activation_type == "swiglu":
        if activation_alpha is None or activation_beta is None:
            raise VerificationError(
                "swiglu needs activation_alpha and activation_beta in the graph, their defaults changed between "
                f"onnxruntime's versions; got {activation_alpha} and {activation_beta}. Export the variant again."
            )
        alpha, beta = activation_alpha, activation_beta
    fused = activation_type == "swiglu" and fc3 is None
    if fused and swiglu_fusion not in (1, 2):
        raise VerificationError(f"fused swiglu needs swiglu_fusion 1 or 2 or a third weight, got {swiglu_fusion}.")
    flat = x.reshape(-1, x.shape[-1])

    def stored(values: Array) -> Array:
        return wide(values.astype(x.dtype, copy=False))

    def biased(values: Array, which: int, e: int) -> Array:
        bias = biases[which]
        return stored(values if bias is None else values + wide(bias[e]))

    def expert(e: int, rows: Array) -> Array:
        gate = biased(linear(rows, fc1(e)), 0, e)
        up = None if fc3 is None else stored(linear(rows, fc3(e)))
        if fused and swiglu_fusion == 1:
            gate, up = gate[:, 0::2], gate[:, 1::2]
        elif fused:
            gate, up = np.split(gate, 2, axis=1)
        if np.isfinite(swiglu_limit) and activation_type == "swiglu":
            gate = np.minimum(gate, swiglu_limit)
            up = up if up is None else np.clip(up, -swiglu_limit, swiglu_limit)
        inner = gate * sigmoid(np.float32(alpha) * gate)
        if up is not None:
            inner = inner * (up + np.float32(beta))
        return biased(linear(stored(inner), fc2(e)), 1, e)

    result = np.zeros(flat.shape, np.float32)
    for e in np.unique(chosen):
        rows, ranks = np.nonzero(chosen == e)
        result[rows] += shares[rows, ranks, None] * expert(int(e), flat[rows])
    return result.astype(x.dtype, copy=False).reshape(x.shape)


def _unpack(codes: Array, scales: Array, bits: int, block: int) -> Weights:
    """Codes [E, N, K * bits / 8] and scales [E, N, blocks]."""
    if scales.ndim != 3 or block <= 0:
        raise VerificationError(
            f"numpy runs QMoE with blocks, scales [E, N, blocks]; got scales {list(scales.shape)}, block_size {block}."
        )
    shape = (codes.shape[1], codes.shape[2] * 8 // bits)
    return lambda e: Packed(codes[e], scales[e], bits, block, shape)


def _filled(inputs: tuple[Array | None, ...], count: int) -> list[Array | None]:
    """Optional inputs at the end may be left out."""
    return [*inputs, *[None] * (count - len(inputs))]


def _without(kind: str, inputs: dict[str, Array | None]) -> None:
    given = [name for name, value in inputs.items() if value is not None]
    if given:
        raise VerificationError(f"numpy runs {kind} without {', '.join(given)}, which no exported graph has.")
