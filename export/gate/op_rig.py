"""Small graphs for the self-tests of operators, and what they must compute, in float64.

A `Rig` is a temporary weight file, filled as a variant's is, under one block of experts described like any checkpoint;
so the functions that emit a variant's graphs emit these. n tokens, k experts per token, E experts, d width, I inner.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from export.graph.builder import FLOAT16, INT64, Graph
from export.graph.moe import mixture
from export.graph.norm import rms_norm
from export.run.load_errors import shortened
from export.run.providers import CPU
from export.run.session import Provider, RunError, open_session
from export.run.session_options import SESSION_OPTIONS
from transform.architectures import Settings
from transform.architectures.graph_facts import Activation, DecoderGraph, GateUp, Rope, Routing, Scores
from transform.arrays import Array
from transform.checkpoint import Checkpoint, Pack, Tensor
from transform.errors import VerificationError
from transform.forms import ACTIVATIONS, Form
from transform.knobs import DTYPES
from transform.packed_layout import BLOCK, SCALES
from transform.packing import encode

STORED = {"F32": np.float32, "F16": np.float16, "BF16": bfloat16, "U8": np.uint8}
WIDTH, INNER, SPARE = 2 * BLOCK, 3 * BLOCK, 8  # d, I, experts beyond k
TOKENS = 5
_FILE = "model.safetensors"


@dataclass
class Rig:
    """A weight file under construction; every draw is the same in every run."""

    directory: Path
    provider: Provider = CPU
    options: Sequence[Mapping[str, str]] = (SESSION_OPTIONS,)  # every graph is run with each of them

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(7)
        (self.directory / _FILE).write_bytes(b"")

    def draw(self, *shape: int, scale: float = 1.0) -> Array:
        """Normal numbers, float32."""
        return self.random.standard_normal(shape).astype(np.float32) * np.float32(scale)

    def store(self, name: str, values: Array, stored: str = "F32", shift: int = 0) -> Tensor:
        """A weight at the end of the file, `shift` bytes beyond a multiple of 64."""
        data = np.ascontiguousarray(values, STORED[stored]).tobytes()
        path = self.directory / _FILE
        with path.open("ab") as file:
            file.write(bytes(-file.tell() % 64 + shift))
            start = file.tell()
            file.write(data)
        return Tensor(name, stored, values.shape, path, start, len(data), stored)

    def pack(self, name: str, values: Array, bits: int, scales: str) -> tuple[Pack, Array]:
        """[..., N, K] quantised as a variant's weights are, and the values that codes and scales mean (float64).

        Read back here by itself, not by what the packing module thinks it wrote.
        """
        *rows, width = values.shape
        flat = values.reshape(-1, width)
        codes, steps = encode(flat, bits, BLOCK, np.dtype(STORED[scales]).str, name)
        numbers = codes if bits == 8 else np.stack((codes & 15, codes >> 4), axis=-1)  # the low half comes first
        numbers = numbers.reshape(*steps.shape, BLOCK).astype(np.float64) - 2 ** (bits - 1)
        meant = (numbers * steps[..., None]).reshape(len(flat), -1)[:, :width].reshape(values.shape)
        stacked = len(rows) > 1  # QMoE takes rows of codes, MatMulNBits takes blocks
        codes = codes.reshape(*rows, -1) if stacked else codes
        stored = (
            self.store(f"{name}.codes", codes, "U8"),
            self.store(f"{name}.scales", steps.reshape(*rows, -1), scales),
        )
        return Pack(*stored, bits, BLOCK), meant

    def packed(self, name: str, values: Array, bits: int) -> tuple[Tensor, Array]:
        """A matrix [N, K] with codes and scales of its own, and the values that these mean (float64)."""
        pack, meant = self.pack(name, values, bits, DTYPES[SCALES[0]])
        return Tensor(name, "F32", values.shape, pack.codes.file, 0, 0, f"I{bits}", pack), meant

    def run(self, graph: Graph, x: Array, change: Callable[[Any], None] = lambda _: None) -> list[Array]:
        """What a graph makes of its one input, under each of the options; `change` may edit the model first."""
        model = graph.model()
        change(model)
        path = self.directory / "graph.onnx"
        path.write_bytes(model.SerializeToString())
        whole = np.issubdtype(x.dtype, np.integer)
        feed = {"x": x if whole else x.astype(np.float16 if graph.compute == FLOAT16 else np.float32)}
        try:
            return [open_session(path, o, (self.provider,), threads=1).run(None, feed)[0] for o in self.options]
        except Exception as error:  # onnxruntime has a dozen exception types without a common base
            operators = ", ".join(sorted({node.op_type for node in model.graph.node if node.domain}))
            # a session's other words speak of a variant to be exported again, and none was
            out = "Install another onnxruntime, or export with --form cpu; --no-onnx leaves the graphs out."
            reason = str(error) if isinstance(error, RunError) else f"{shortened(error.__cause__ or error)}. {out}"
            raise VerificationError(
                f"The operators of a variant ({operators or graph.name}) must run here, but: {reason}"
            ) from error


@dataclass(frozen=True)
class Kind:
    """What kind of experts a model has: what they compute, whether a correction helps to choose them."""

    facts: DecoderGraph
    corrected: bool = False

    @classmethod
    def plain(cls, settings: Settings) -> "Kind":
        """A softmax over all, SiLU."""
        return cls(DecoderGraph(Routing(renormalise=settings.norm_top_k), Rope(settings.head_dim, settings.rope_theta)))

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Kind":
        """A checkpoint's own."""
        corrected = any(checkpoint.has("router.correction", i) for i in range(checkpoint.settings.layers))
        return cls(checkpoint.graph, corrected)

    @property
    def in_slabs(self) -> bool:
        """Gate and up in turns are in one array, with biases."""
        return self.facts.gate_up is GateUp.ALTERNATING


@dataclass(frozen=True)
class Block:
    """One block as a variant holds it, the values it stands for, and tokens whose choice of experts is clear."""

    checkpoint: Checkpoint
    norm: Array  # [d]
    router: Array  # [E, d]
    correction: Array  # [E]
    experts: tuple[Array, Array, Array]  # gate, up [E, I, d] and down [E, d, I]
    biases: tuple[Array, Array]  # [E, 2I] in turns, [E, d]
    tokens: Array  # [n, d]

    def expected(self, x: Array) -> Array:
        """x + experts(norm(x))."""
        settings, facts = self.checkpoint.settings, self.checkpoint.graph
        x = x.astype(np.float64)
        normed = rms_normed(x, self.norm, settings.eps)
        scores = chosen_by(facts.routing, normed @ self.router.T)
        chosen = np.argsort(-(scores + self.correction), axis=1)[:, : settings.top_k[0]]
        kept = np.take_along_axis(scores, chosen, axis=1)
        if facts.routing.renormalise or facts.routing.scores is Scores.CHOSEN:
            kept = kept / np.maximum(kept.sum(axis=1, keepdims=True) + facts.routing.add, facts.routing.least)
        gate, up, down = (part[chosen] for part in self.experts)  # [n, k, ...]
        bias, bias_down = (part[chosen] for part in self.biases)
        gated = np.einsum("nkid,nd->nki", gate, normed) + bias[..., 0::2]
        above = np.einsum("nkid,nd->nki", up, normed) + bias[..., 1::2]
        if facts.activation is Activation.CLAMPED:
            gated, above = np.minimum(gated, facts.limit), np.clip(above, -facts.limit, facts.limit) + 1
        inner = gated / (1 + np.exp(-facts.alpha * gated)) * above
        found = np.einsum("nkdi,nki->nkd", down, inner) + bias_down
        return x + facts.routing.scale * np.einsum("nk,nkd->nd", kept, found)


def chosen_by(routing: Routing, logits: Array) -> Array:
    """What experts are chosen by, without a correction; weights too, once those of the chosen are divided by their sum
    where that is meant."""
    return 1 / (1 + np.exp(-logits)) if routing.scores is Scores.SIGMOID else softmax(logits)


@dataclass(frozen=True)
class OneBlock(Checkpoint):
    """Experts as any checkpoint has them, without a family: tensors are called by their roles."""

    settings: Settings = field(kw_only=True)
    graph: DecoderGraph = field(kw_only=True)

    def name(self, role: str, i: int = 0, e: int = 0, j: int = 0) -> str:
        """Such as `expert.gate.0.3.0`."""
        return f"{role}.{i}.{e}.{j}"

    def has(self, role: str, i: int = 0, e: int = 0) -> bool:
        """Whether it was stored."""
        return self.name(role, i, e) in self.tensors


def make_block(
    rig: Rig, settings: Settings, k: int, stored: str = "F32", bits: int = 0, kind: Kind | None = None
) -> Block:
    """A block with the model's k, norm and epsilon at small widths; `bits` packs its experts."""
    count, kind = min(settings.experts, k + SPARE), kind or Kind.plain(settings)
    small = replace(
        settings, hidden=WIDTH, layers=1, heads=1, kv_heads=1, experts=count, top_k=(k,), experts_of=(count,),
        windows=(None,),
    )  # fmt: skip
    facts = replace(kind.facts, routing=replace(kind.facts.routing, groups=None))
    empty = OneBlock(rig.directory, {}, {}, (), settings=small, graph=facts)
    tensors: dict[str, Tensor] = {}

    def add(role: str, values: Array, e: int = 0) -> Array:
        tensor = rig.store(empty.name(role, 0, e), values, stored)
        tensors[tensor.name] = tensor
        return values.astype(STORED[stored]).astype(np.float64)

    norm = add("mlp.norm", 1 + rig.draw(WIDTH, scale=0.1))
    router = add("router", rig.draw(count, WIDTH, scale=1.5 / WIDTH**0.5))
    correction = add("router.correction", rig.draw(count, scale=0.1)) if kind.corrected else np.zeros(count)
    drawn = {
        "gate": rig.draw(count, INNER, WIDTH, scale=2 / WIDTH**0.5),
        "up": rig.draw(count, INNER, WIDTH, scale=2 / WIDTH**0.5),
        "down": rig.draw(count, WIDTH, INNER, scale=2 / INNER**0.5),
    }
    biases = np.zeros((count, 2 * INNER)), np.zeros((count, WIDTH))
    if kind.in_slabs:
        biases = (
            add("expert.gate_up.bias", rig.draw(count, 2 * INNER, scale=0.3)),
            add("expert.down_slab.bias", rig.draw(count, WIDTH, scale=0.3)),
        )
    if bits:
        values = _pack_experts(rig, empty, tensors, drawn, bits, kind.in_slabs)
    elif kind.in_slabs:
        both = add("expert.gate_up", _in_turns(drawn).swapaxes(1, 2)).swapaxes(1, 2)
        down = add("expert.down_slab", drawn["down"].swapaxes(1, 2)).swapaxes(1, 2)
        values = {"gate": both[:, 0::2], "up": both[:, 1::2], "down": down}
    else:  # stack after stack
        values = {part: np.stack([add(f"expert.{part}", w, e) for e, w in enumerate(v)]) for part, v in drawn.items()}
    experts = (values["gate"], values["up"], values["down"])
    tokens = _clear_tokens(rig, norm, lambda normed: chosen_by(facts.routing, normed @ router.T) + correction, k)
    return Block(replace(empty, tensors=tensors), norm, router, correction, experts, biases, tokens)


def _in_turns(drawn: Mapping[str, Array]) -> Array:
    """[E, 2I, d]: rows gate 0, up 0, gate 1, ..."""
    return np.stack((drawn["gate"], drawn["up"]), axis=2).reshape(len(drawn["gate"]), 2 * INNER, WIDTH)


def _pack_experts(
    rig: Rig, empty: Checkpoint, tensors: dict[str, Tensor], drawn: Mapping[str, Array], bits: int, in_slabs: bool
) -> dict[str, Array]:
    """Gate and up in alternating rows in one pack, down in another; every expert's tensor carries its stack's."""
    gate_up, meant = rig.pack("gate_up", _in_turns(drawn), bits, "F16")
    down, meant_down = rig.pack("down", drawn["down"], bits, "F16")
    kind = f"I{bits}"
    if in_slabs:
        for role, found in (("expert.gate_up", gate_up), ("expert.down_slab", down)):
            shape = (len(meant), WIDTH, 2 * INNER) if found is gate_up else (len(meant), INNER, WIDTH)
            tensors[empty.name(role)] = found.codes._replace(name=role, shape=shape, stored=kind, pack=found)
        return {"gate": meant[:, 0::2], "up": meant[:, 1::2], "down": meant_down}
    for part, found in (("gate", gate_up), ("up", gate_up), ("down", down)):
        for e, weight in enumerate(drawn[part]):
            name = empty.name(f"expert.{part}", 0, e)
            tensors[name] = found.codes._replace(name=name, shape=weight.shape, stored=kind, pack=found)
    return {"gate": meant[:, 0::2], "up": meant[:, 1::2], "down": meant_down}


def _clear_tokens(rig: Rig, norm: Array, choice: Callable[[Array], Array], k: int) -> Array:
    """Of many drawn tokens those whose k-th expert leads most: 16 bits must not choose others."""
    many = rig.draw(40 * TOKENS, WIDTH)
    scores = -np.sort(-choice(rms_normed(many, norm, 1e-5)), axis=1)
    if k == scores.shape[1]:
        return many[:TOKENS]
    lead = np.log(np.maximum(scores[:, k - 1], 1e-12)) - np.log(np.maximum(scores[:, k], 1e-12))
    return many[np.argsort(-lead)[:TOKENS]]


def block_graph(
    checkpoint: Checkpoint,
    form: Form,
    rows: int | str = "n",
    experts: Any = mixture,
    activations: str = ACTIVATIONS[0],
) -> Graph:
    """norm, router, experts, residual sum, on x [rows, d]: both ends of the experts are values inside the graph."""
    settings = checkpoint.settings
    g = Graph("block", form, activations=activations)
    x = g.input("x", g.compute, [rows, settings.hidden])
    normed = rms_norm(g, x, checkpoint.tensor("mlp.norm"), settings.eps)
    g.output("y", g.op("Add", x, experts(g, checkpoint, 0, normed)), g.compute, [rows, settings.hidden])
    return g


def norm_graph(weight: Tensor, eps: float, form: Form) -> Graph:
    """One norm."""
    g = Graph("norm", form)
    x = g.input("x", g.compute, ["n", *weight.shape])
    g.output("y", rms_norm(g, x, weight, eps), g.compute, ["n", *weight.shape])
    return g


def rows_graph(table: Tensor, form: Form) -> Graph:
    """Rows of a table by their indices."""
    g = Graph("rows", form)
    ids = g.input("x", INT64, ["batch", "sequence"])
    g.output("y", g.rows(table, ids), g.compute, ["batch", "sequence", table.shape[1]])
    return g


def linear_graph(weight: Tensor, form: Form, bias: Tensor | None = None, activations: str = ACTIVATIONS[0]) -> Graph:
    """One product x W^T (+ b)."""
    rows, columns = weight.shape
    g = Graph("linear", form, activations=activations)
    x = g.input("x", g.compute, ["n", columns])
    g.output("y", g.linear(x, weight, bias), g.compute, ["n", rows])
    return g


def relative(ours: Sequence[Array], theirs: Array, scale: float | None = None) -> float:
    """The largest difference of any result, as a part of the largest value or of `scale`; NaN where one is NaN."""
    largest = np.abs(theirs).max() if scale is None else scale
    if any(result.shape != theirs.shape for result in ours):
        return float("inf")
    return float(np.max([np.abs(result.astype(np.float64) - theirs).max() for result in ours]) / largest)


def rms_normed(x: Array, weight: Array, eps: float) -> Array:
    """In float64."""
    wide = x.astype(np.float64)
    return wide / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + eps) * weight


def softmax(values: Array) -> Array:
    """Over the last axis."""
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
