"""Does the installed onnxruntime compute what the graphs mean? Tiny graphs of the same emission, run before any export.

Several of its operators have been silently wrong, and some are missing from older ones. Each check runs one as a
variant would have it, on tiny weights at the model's own k, and compares it with float64; an export is refused where
one fails. No torch, and less than half a second.
"""

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from export.files.verification import Operators
from export.gate.op_rig import (
    WIDTH,
    Block,
    Kind,
    Rig,
    block_graph,
    linear_graph,
    make_block,
    norm_graph,
    relative,
    rms_normed,
    rows_graph,
)
from export.graph.builder import CONTRIB, FLOAT16, Graph
from export.run.oldest import too_old_for
from export.run.providers import CPU, CUDA, cuda_options
from export.run.session import RunError, check_loads
from export.run.session_options import SESSION_OPTIONS, session_options
from transform.architectures import Settings
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.errors import VerificationError
from transform.forms import REFERENCE, ROUNDED, Form
from transform.knobs import DTYPES
from transform.packed_layout import BLOCK
from transform.scratch import scratch

LIMITS = {"float32": 1e-5, "float16": 5e-3}  # of operators but the experts; the first as in the gate
INT8_LIMIT = 3e-2  # of products with rows rounded to 8 bits: 1e-2 was seen
_ODD = 77  # no multiple of a block


class Check(NamedTuple):
    """One measured difference, as a part of the largest value; without a limit it is only recorded."""

    operator: str
    what: str
    difference: float
    limit: float | None

    @property
    def passed(self) -> bool:
        """NaN isn't."""
        return self.limit is None or self.difference <= self.limit


def check_operators(
    form: Form,
    settings: Settings,
    provider: str = "cpu",
    activations: str | None = None,
    kind: Kind | None = None,
) -> Operators:
    """Run the checks of a form, its activations and a kind of experts; raises VerificationError at the first failure.

    -> {"onnxruntime", "provider", "checks": {operator, what: {"difference", "limit"}}}, or "not_run" with the reason
    where no machine of this kind can run the form's experts.
    """
    check_form(form, activations)
    wanted, not_run = CPU if provider == "cpu" else CUDA, None
    if provider == "cpu" and not form.runs_on_cpu:
        reason = missing_cuda()
        if reason is None:
            provider, wanted = "cuda", CUDA
        else:
            not_run = f"{form.experts}: {reason}"
    checks: dict[str, dict[str, float]] = {}
    for check in run_checks(form, settings, wanted, activations, kind):
        _insist(check, form)
        limits = {} if check.limit is None else {"limit": check.limit}
        checks[f"{check.operator}, {check.what}"] = {"difference": float(f"{check.difference:.2g}"), **limits}
    version = onnxruntime.__version__
    if not_run is not None:
        return {"onnxruntime": version, "provider": provider, "not_run": not_run, "checks": checks}
    return {"onnxruntime": version, "provider": provider, "checks": checks}


def check_form(form: Form, activations: str | None = None) -> None:
    """Refuse a form that the installed onnxruntime is too old for; raises VerificationError."""
    if text := too_old_for(form, onnxruntime.__version__, activations):
        raise VerificationError(text)


def run_checks(
    form: Form, settings: Settings, provider: str = CPU, activations: str | None = None, kind: Kind | None = None
) -> Iterator[Check]:
    """Measure the checks of a form one by one, judging none; raises VerificationError for what can't run at all."""
    with scratch("operators") as directory:
        # whether weights are repacked at load decides which kernels run: codes must be right both ways
        options = [session_options(form)] + ([SESSION_OPTIONS] if form.bits else [])
        rig = Rig(directory, CPU if provider == CPU else [provider, cuda_options(static=False)], options)
        yield from _views(rig, form)
        yield from _norms(rig, settings, form)
        if form.runs_on_cpu or provider != CPU:
            for k in sorted(set(settings.top_k) - {0}):
                yield from _experts(rig, settings, k, form, kind or Kind.plain(settings))
        if form.bits:
            yield from _products(rig, form)
            yield from _tables(rig, form)
        if form.bits and activations == ROUNDED and any(settings.top_k):
            yield from _rounded(rig, settings, form, form.bits, kind)


def missing_cuda() -> str | None:
    """Why the CUDA provider can't be used here, or None where it loads."""
    try:
        ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "windll") else "libcuda.so.1")
    except OSError:  # asked first: onnxruntime prints three lines about it
        return "no CUDA provider (no NVIDIA driver)"
    try:
        check_loads([(CUDA, {})])
    except RunError as error:
        return f"no CUDA provider ({error})"
    return None


def check_cpu_moe(settings: Settings, rows: int | str = "n") -> Check:
    """The fused float32 `MoE` of onnxruntime's CPU, between two values inside a graph. No variant has it.

    Until 1.31 it is silently wrong there: its result is written over its input while that is still read.
    """
    k = settings.top_k[0]
    with scratch("operators") as directory:
        rig = Rig(directory)
        block = make_block(rig, settings, k)
        gate, up, down = block.experts
        both = np.stack((gate, up), axis=2).reshape(len(gate), -1, WIDTH)
        stacks = rig.store("gate_up", both), rig.store("down.stack", down)

        def fused(g: Graph, checkpoint: Checkpoint, i: int, x: str) -> str:
            logits = g.linear(x, checkpoint.tensor("router", i))
            return g.op(
                "MoE", x, logits, g.stored(stacks[0]), "", g.stored(stacks[1]),
                domain=CONTRIB, k=k, activation_type="swiglu", swiglu_fusion=1, activation_alpha=1.0,
                activation_beta=0.0, normalize_routing_weights=int(settings.norm_top_k),
            )  # fmt: skip

        graph = block_graph(block.checkpoint, replace(REFERENCE, fused=True), rows, fused)
        return Check("MoE", f"CPU, k {k}", _difference(rig, block, graph, block.tokens), LIMITS["float32"])


def _insist(check: Check, form: Form) -> None:
    if check.passed:
        return
    out = "Export with --form cpu, or install" if form.fused else "Install"
    raise VerificationError(
        f"{check.operator} ({check.what}) must be computed to {check.limit} of the largest value, onnxruntime "
        f"{onnxruntime.__version__} differs by {check.difference:.3g}. {out} another onnxruntime; --no-onnx leaves "
        "the graphs out."
    )


def _views(rig: Rig, form: Form) -> Iterator[Check]:
    """A weight read in place from the middle of a file, at an address that suits no type."""
    for shift in (0, 3):
        weight = rig.draw(24, WIDTH, scale=WIDTH**-0.5).astype(form.compute)
        tensor = rig.store(f"view{shift}", weight, DTYPES[form.compute], shift)
        x = rig.draw(4, WIDTH)
        yield _compare(rig, "Gemm", f"weight at {shift} bytes of 64", linear_graph(tensor, form), x, x @ weight.T, form)


def _norms(rig: Rig, settings: Settings, form: Form) -> Iterator[Check]:
    """Values as small as epsilon's root, where leaving it out shows."""
    weight = (1 + rig.draw(WIDTH, scale=0.1)).astype(form.compute)
    tensor = rig.store("norm.weight", weight, DTYPES[form.compute])
    x = rig.draw(4, WIDTH) * np.float32(settings.eps**0.5) * np.array([[1], [1], [30], [3000]], np.float32)
    x = x.astype(form.compute)
    operator = "SimplifiedLayerNormalization" if form.fused else "ReduceMean"
    graph = norm_graph(tensor, settings.eps, form)
    yield _compare(rig, operator, f"epsilon {settings.eps}", graph, x, rms_normed(x, weight, settings.eps), form)


def _experts(rig: Rig, settings: Settings, k: int, form: Form, kind: Kind) -> Iterator[Check]:
    """A block of experts for each way in which the form may store them."""
    if form.bits is None:
        for stored in ("F32", "BF16") if form.stored is None else (DTYPES[form.stored],):
            block = make_block(rig, settings, k, stored, kind=kind)
            yield _block(rig, block, form, f"{'gate and up in turns' if form.stacked else stored}, k {k}")
        return
    block = make_block(rig, settings, k, bits=form.bits, kind=kind)
    yield _block(rig, block, form, f"{form.bits} bits, k {k}")
    if kind == Kind.plain(settings) and not settings.norm_top_k:
        # what the emission guards against; a difference of 0 would say that it needn't any more
        difference = _difference(rig, block, block_graph(block.checkpoint, form), block.tokens, _no_router_weights)
        yield Check(form.experts, f"{form.bits} bits, without router_weights, k {k}", difference, None)


def _block(rig: Rig, block: Block, form: Form, what: str) -> Check:
    """A block on several tokens and on one; on a GPU with fixed shapes too. The largest difference counts."""
    everyone, one = block.tokens, block.tokens[:1]
    runs: list[tuple[int | str, Array]] = [("n", everyone), ("n", one)]
    if not form.runs_on_cpu:
        runs += [(len(everyone), everyone), (1, one)]
    found = [_difference(rig, block, block_graph(block.checkpoint, form, rows), x) for rows, x in runs]
    return Check(form.experts, what, float(np.max(found)), form.tolerance)


def _products(rig: Rig, form: Form) -> Iterator[Check]:
    """The decoder's and the vision side's, with a bias as there; the activations stay floats in both."""
    for bits in sorted({bits for bits in (form.bits, form.vision_bits) if bits}):
        for columns in (2 * BLOCK, _ODD):
            weight = rig.draw(24, columns, scale=columns**-0.5)
            tensor, meant = rig.packed(f"product{bits}.{columns}", weight, bits)
            x, values = rig.draw(4, columns), rig.draw(24)
            bias = rig.store(f"{tensor.name}.bias", values)
            graph = linear_graph(tensor, form, bias)
            yield _compare(rig, "MatMulNBits", f"{bits} bits, {columns} columns", graph, x, x @ meant.T + values, form)


def _tables(rig: Rig, form: Form) -> Iterator[Check]:
    """Rows of an embedding table. Its width fills its blocks, or the experts would have been refused."""
    if form.table_bits is None:
        return
    tensor, meant = rig.packed("table", rig.draw(24, WIDTH), form.table_bits)
    ids = np.array([[0, 23, 5], [5, 1, 23]])
    what = f"{form.table_bits} bits"
    yield _compare(rig, "GatherBlockQuantized", what, rows_graph(tensor, form), ids, meant[ids], form)


def _rounded(rig: Rig, settings: Settings, form: Form, bits: int, kind: Kind | None) -> Iterator[Check]:
    """The same two operators where rows are rounded to 8 bits; without repacking they are not."""
    k = max(settings.top_k)
    block = make_block(rig, settings, k, bits=bits, kind=kind)
    graph = block_graph(block.checkpoint, form, activations=ROUNDED)
    found = [_difference(rig, block, graph, x) for x in (block.tokens, block.tokens[:1])]
    yield Check(form.experts, f"{bits} bits, int8 activations, k {k}", float(np.max(found)), INT8_LIMIT)
    weight = rig.draw(24, _ODD, scale=_ODD**-0.5)
    tensor, meant = rig.packed("rounded", weight, bits)
    x = rig.draw(4, _ODD)
    difference = relative(rig.run(linear_graph(tensor, form, activations=ROUNDED), x), x @ meant.T)
    yield Check("MatMulNBits", f"{bits} bits, int8 activations", difference, INT8_LIMIT)


def _no_router_weights(model: Any) -> None:
    for node in model.graph.node:
        if node.op_type == "QMoE":
            del node.input[-1]


def _compare(rig: Rig, operator: str, what: str, graph: Graph, x: Array, expected: Array, form: Form) -> Check:
    return Check(operator, what, relative(rig.run(graph, x), expected), LIMITS[form.compute])


def _difference(
    rig: Rig, block: Block, graph: Graph, x: Array, change: Callable[[Any], None] = lambda _: None
) -> float:
    """Measured against what the experts add, which is less than the sum that comes out."""
    x = x.astype(np.float16) if graph.compute == FLOAT16 else x
    expected = block.expected(x)
    return relative(rig.run(graph, x, change), expected, float(np.abs(expected - x).max()))
