"""The graphs of every family that has some, in every form, against stock transformers: prefill, cached steps, padding.

Prompts are longer than any window; PyTorch has the weights as the form stores them, in float32.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from export.derive import derive, load_graph
from export.derive.check import check_derived
from export.derive.surgery import operate
from export.gate.checking import checking_graphs
from export.gate.compare import find_probe, onnx_vs_torch, windows_not_passed
from export.gate.far import far_windows
from export.gate.probe import MOST_WINDOW, PROMPT, prompt_length
from export.gate.verify import verify_directory
from export.graph.decoder import text_graph
from export.graph.static import plan_static
from export.variant import export_variant
from tests.support.compared import TOLERANCE, check, ids_and_masks, loaded
from tests.support.decoders import DECODERS, DENSE, EXPERTS, GENAI, K, write_decoder
from tests.support.graphs import empty_cache, session, step
from tests.support.variants import write_variant
from transform.architectures import Settings, architecture_named, known_model_types
from transform.architectures.graph_facts import DecoderGraph, Scaling, Turn
from transform.checkpoint import Checkpoint
from transform.errors import VerificationError
from transform.forms import NAMES, REFERENCE, form_named
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.runtime import moe_top_k
from transform.top_k import set_top_k


@pytest.mark.parametrize("form", ["cpu", "int4"])
@pytest.mark.parametrize("name", DECODERS)
def test_graphs_equal_transformers(name: str, form: str, tmp_path: Path) -> None:
    source = write_decoder(name, tmp_path / "source", torch.bfloat16)
    variant = write_variant(source, tmp_path / "variant", k=None if name in DENSE else 3, form=form)
    check(session(variant, "text.onnx"), loaded(variant, form), read_checkpoint(variant).graph.routing)


@pytest.mark.extra
@pytest.mark.parametrize(
    ("form", "stored"),
    [("cpu", torch.float32), ("cpu", torch.float16), ("int8", torch.float32), ("cuda", torch.bfloat16)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", DECODERS)
def test_graphs_equal_transformers_at_every_k(name: str, form: str, stored: torch.dtype, tmp_path: Path) -> None:
    source = write_decoder(name, tmp_path / "source", stored)
    variant = write_variant(source, tmp_path / "variant", keep=[0, 1, 3], form=form)
    if name in DENSE:
        check(session(variant, "text.onnx"), loaded(variant, form), read_checkpoint(variant).graph.routing)
        return
    checkpoint, theirs = read_checkpoint(variant), loaded(variant, form)
    for k in (1, K, EXPERTS - 2):  # groups of experts don't let a token choose among all
        changed = set_top_k(checkpoint, k)
        text_graph(changed, form_named(form)).write(variant / "other.onnx")
        with moe_top_k(theirs, k):
            check(session(variant, "other.onnx"), theirs, checkpoint.graph.routing)


@pytest.mark.extra
@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "glm4_moe", "ernie4_5_moe", "flex_olmo"])
def test_slabs_equal_a_tensor_per_expert(name: str, form: str, tmp_path: Path) -> None:
    """As transformers holds experts in memory: what is read is what is there."""
    write_decoder(name, tmp_path / "source", torch.bfloat16, save_original_format=False)
    variant = write_variant(tmp_path / "source", tmp_path / "variant", k=3, form=form)
    assert read_checkpoint(variant).has("expert.gate_up", 3)
    check(session(variant, "text.onnx"), loaded(variant, form), read_checkpoint(variant).graph.routing)


def without_windows(checkpoint: Checkpoint) -> Checkpoint:
    return with_settings(checkpoint, windows=(None,) * checkpoint.settings.layers)


def with_settings(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    changed = replace(checkpoint)
    changed.__dict__["settings"] = replace(checkpoint.settings, **changes)
    changed.__dict__["graph"] = checkpoint.graph
    return changed


def with_facts(change: Callable[[DecoderGraph], DecoderGraph]) -> Callable[[Checkpoint], Checkpoint]:
    def changed(checkpoint: Checkpoint) -> Checkpoint:
        other = replace(checkpoint)
        other.__dict__["graph"] = change(checkpoint.graph)
        return other

    return changed


def routed(**changes: Any) -> Callable[[Checkpoint], Checkpoint]:
    return with_facts(lambda facts: replace(facts, routing=replace(facts.routing, **changes)))


def turned(**changes: Any) -> Callable[[Checkpoint], Checkpoint]:
    return with_facts(lambda facts: replace(facts, rope=replace(facts.rope, **changes)))


def missing(role: str) -> Callable[[Checkpoint], Checkpoint]:
    """The checkpoint as if no block had a tensor of this role."""

    def changed(checkpoint: Checkpoint) -> Checkpoint:
        names = {checkpoint.name(role, i) for i in range(checkpoint.settings.layers)}
        return replace(checkpoint, tensors={n: t for n, t in checkpoint.tensors.items() if n not in names})

    return changed


WRONG: dict[str, tuple[str, Callable[[Checkpoint], Checkpoint]]] = {
    "not renormalised": ("mixtral", routed(renormalise=False)),
    "no window": ("mixtral", without_windows),
    "no window in any block": ("qwen2_moe", without_windows),
    "no bias on queries": ("qwen2_moe", missing("attention.q.bias")),
    "no gate of the shared expert": ("qwen2_moe", missing("shared.router")),
    "not stretched": ("qwen2_moe", turned(scaling=Scaling.DEFAULT)),
    "no norm of queries": ("qwen3_moe", missing("attention.q_norm")),
    "no multiplier of branches": ("granitemoe", with_facts(lambda facts: replace(facts, residual=1.0))),
    "no multiplier of embeddings": ("granitemoe", with_facts(lambda facts: replace(facts, embedding=1.0))),
    "logits not divided": ("granitemoe", with_facts(lambda facts: replace(facts, logits=1.0))),
    "scores by the head's width": ("granitemoe", with_facts(lambda facts: replace(facts, attention=None))),
    "no sinks": ("gpt_oss", missing("attention.sinks")),
    "cut ramp": ("gpt_oss", turned(truncate=True)),
    "no limit": ("gpt_oss", with_facts(lambda facts: replace(facts, limit=1e3))),
    "no bias of the router": ("gpt_oss", missing("router.bias")),
    "no bias of experts": ("gpt_oss", missing("expert.down_slab.bias")),
    "no groups": ("glm4_moe", routed(groups=None)),
    "no scale": ("glm4_moe", routed(scale=1.0)),
    "no correction": ("glm4_moe", missing("router.correction")),
    "all of a head turned": ("glm4_moe", turned(width=24)),
    "neighbours not turned": ("ernie4_5_moe", turned(turn=Turn.HALVES)),
    "no least sum": ("ernie4_5_moe", routed(least=0.0)),
}


@pytest.mark.parametrize("what", WRONG)
def test_each_fact_shows(what: str, tmp_path: Path) -> None:
    """Otherwise the comparisons above could not tell."""
    name, change = WRONG[what]
    checkpoint = read_checkpoint(write_decoder(name, tmp_path))
    ids, _ = ids_and_masks()
    logits = []
    (tmp_path / "io.json").write_text('{"form": "cpu", "session_options": {}}')
    for seen in (checkpoint, change(checkpoint)):
        text_graph(seen, REFERENCE).write(tmp_path / "text.onnx")
        text = session(tmp_path, "text.onnx")
        logits.append(step(text, {"input_ids": ids}, np.ones_like(ids), empty_cache(text, 2))[0])
    assert np.abs(logits[0] - logits[1]).max() > 100 * TOLERANCE * np.abs(logits[0]).max()


@pytest.mark.extra
@pytest.mark.parametrize(
    ("name", "form"),
    [("qwen3_moe", "cpu"), ("qwen2_moe", "int4"), ("granitemoe", "int8"), ("gpt_oss", "int4"), ("glm4_moe", "cuda"),
     ("ernie4_5_moe", "cpu"), ("flex_olmo", "int4"), ("llama", "cpu")],
)  # fmt: skip
def test_the_gate_proves_each_kind(name: str, form: str, tmp_path: Path) -> None:
    """Static graphs included; each window is passed by its probes."""
    source = write_decoder(name, tmp_path / "source", torch.bfloat16)
    knobs = Knobs(k=None if name in DENSE else 3, keep=(0, 2, 3), form=form)
    plan = make_plan(read_checkpoint(source), knobs)
    manifest = export_variant(plan, tmp_path / "variant", static=plan_static(plan, 48))
    verified = manifest["verification"]
    assert set(verified["static_vs_dynamic"].values()) == {0.0}
    assert verified["onnx_vs_torch"]["padded"] < TOLERANCE * verified["onnx_vs_torch"]["largest_value"]
    assert verified["static_vs_torch"]
    verify_directory(tmp_path / "variant")


@pytest.mark.extra
def test_the_gate_proves_dense_and_other_blocks_one_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("transform.machine.free_memory", lambda: 0)
    source = write_decoder("glm4_moe", tmp_path / "source", torch.bfloat16)
    plan = make_plan(read_checkpoint(source), Knobs(k=3, keep=(0, 2)))
    verified = export_variant(plan, tmp_path / "variant")["verification"]
    assert verified["mode"] == "blockwise"
    assert verified["other_k"]["difference"] > 0


def test_every_family_with_graphs_is_run_by_genai() -> None:
    """`test_onnx_genai.py` has a row of each."""
    with_graphs = {name for name in known_model_types() if architecture_named(name).graph is not None}
    assert set(GENAI) == with_graphs


def test_probes_are_longer_than_windows() -> None:
    assert prompt_length((None, None)) == PROMPT
    assert prompt_length((None, 128, 7)) > 128
    assert prompt_length((MOST_WINDOW + 1,)) == PROMPT


@pytest.mark.parametrize(("name", "form"), [("mixtral", "cpu"), ("qwen2", "int4"), ("gpt_oss", "cpu")])
def test_one_key_more_beyond_a_long_window_is_noticed(name: str, form: str, tmp_path: Path) -> None:
    """Windows of thousands are passed by a cache that holds anything; one place too far or too near is an error."""
    long = MOST_WINDOW + 88
    source = write_decoder(name, tmp_path / "source", sliding_window=long, max_position_embeddings=1024)
    variant = write_variant(source, tmp_path / "variant", form=form)
    checkpoint, theirs = read_checkpoint(variant), loaded(variant, form)
    probe = find_probe(theirs, checkpoint)
    assert probe.prompt == PROMPT
    measured = onnx_vs_torch(theirs, checking_graphs(variant), probe)
    assert {"beyond_windows", "beyond_windows_alone"} < measured.keys()
    for other in (long + 1, long - 1, None):
        windows = tuple(None if window is None else other for window in checkpoint.settings.windows)
        text_graph(with_settings(checkpoint, windows=windows), form_named(form)).write(variant / "text.onnx")
        with pytest.raises(VerificationError, match="beyond_windows: the graphs must agree"):
            onnx_vs_torch(theirs, checking_graphs(variant), probe)


@pytest.mark.extra
def test_windows_that_were_not_passed_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = write_decoder("mixtral", tmp_path / "source", sliding_window=600, max_position_embeddings=1024)
    plan = make_plan(read_checkpoint(source), Knobs())
    verified = export_variant(plan, tmp_path / "passed")["verification"]
    assert "windows_not_passed" not in verified
    assert {"beyond_windows", "beyond_windows_alone"} < verified["onnx_vs_torch"].keys()
    monkeypatch.setattr("export.gate.far.MOST_BYTES", 0)
    verified = export_variant(plan, tmp_path / "not")["verification"]
    assert verified["windows_not_passed"] == (600,)
    assert "longer than the windows of 600 tokens" in (tmp_path / "not" / "README.md").read_text()
    assert verify_directory(tmp_path / "not")


def test_what_no_sequence_outgrows_needs_no_probe() -> None:
    settings = SimpleNamespace(windows=(None, 600, 4096), max_positions=4096, layers=3, kv_heads=2, head_dim=24)
    assert far_windows(cast(Settings, settings), MOST_WINDOW) == (600,)
    assert windows_not_passed(cast(Settings, settings), 3) is None
    assert windows_not_passed(cast(Settings, settings), 10**6) == (600,)


ALWAYS_DERIVED = {
    ("qwen3_moe", "cpu"), ("gpt_oss", "cpu"), ("ernie4_5_moe", "cpu"), ("glm4_moe", "cpu"), ("glm4_moe", "int4")
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(name, form, marks=() if (name, form) in ALWAYS_DERIVED else pytest.mark.extra)
        for name in DECODERS
        for form in NAMES
    ],
)
def test_derived_graphs_equal_those_that_are_exported(name: str, form: str, tmp_path: Path) -> None:
    """Blocks without experts, softmax behind the choice, scores at the chosen places, ranked groups, a fused operator
    that is told what was chosen."""
    k = None if name in DENSE else 2
    variant = write_variant(write_decoder(name, tmp_path / "source"), tmp_path / "variant", form=form)
    found = derive(variant / "text.onnx", k, keep=[0, 1, 3], out=variant / "derived.onnx")
    assert found["blocks_kept"] == [0, 1, 3]
    assert k is None or set(found["top_k"]) <= {0, 2}
    other = write_variant(tmp_path / "source", tmp_path / "other", keep=[0, 1, 3], k=k, form=form)
    ids, _ = ids_and_masks()
    logits = []
    for directory, file in ((variant, "derived.onnx"), (other, "text.onnx")):
        text = session(directory, file)
        logits.append(step(text, {"input_ids": ids}, np.ones_like(ids), empty_cache(text, 2))[0])
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["gpt_oss", pytest.param("granitemoe", marks=pytest.mark.extra)])
def test_a_wrong_graph_is_refused_where_the_softmax_follows_the_choice(name: str, tmp_path: Path) -> None:
    """The check masks logits, so it sees a k that isn't the one claimed and weights that no softmax gave."""
    variant = write_variant(write_decoder(name, tmp_path / "source"), tmp_path / "variant")
    source, staged = variant / "text.onnx", variant / "staged.onnx"
    surgery = operate(load_graph(source), 2)
    staged.write_bytes(surgery.model.SerializeToString())
    assert check_derived(source, staged, surgery)["source_with_masked_ranks"]["difference"] < TOLERANCE
    with pytest.raises(VerificationError, match="constant that depends on k was missed"):
        check_derived(source, staged, replace(surgery, top_k=(3,) * len(surgery.top_k or ())))
    chosen = next(node.output[0] for node in surgery.model.graph.node if node.op_type == "TopK")
    weights = next(n for n in surgery.model.graph.node if n.op_type == "Softmax" and chosen in n.input)
    weights.op_type = "Sigmoid"
    del weights.attribute[:]
    staged.write_bytes(surgery.model.SerializeToString())
    with pytest.raises(VerificationError, match="difference is"):
        check_derived(source, staged, surgery)
