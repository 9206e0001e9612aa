"""Golden outputs of variants that don't fit into memory, and `verify` one block at a time."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file

import export.gate.verify
import transform.machine
from export.gate.golden import FILE
from export.gate.golden_file import LEAST
from export.gate.probe import PROMPT
from export.gate.stream import Stream, golden_of
from export.gate.verify import verify_directory
from export.graph.decoder import text_graph
from export.graph.static import plan_static
from export.variant import export_variant
from tests.support.variants import read_json, record_sums, retell
from transform.errors import VerificationError
from transform.forms import REFERENCE
from transform.knobs import Knobs
from transform.load import load_model
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import DEFAULT
from transform.top_k import set_top_k

MARGIN = "export.gate.stream.MIN_MARGIN"


@pytest.fixture(autouse=True)
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fits, and `verify` that loads a whole model fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole model was loaded")

    monkeypatch.setattr(transform.machine, "free_memory", lambda: 0)
    monkeypatch.setattr(export.gate.verify, "load_model", refuse)


def export_small(source: Path, out: Path, knobs: Knobs, **options: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transform.machine, "free_memory", lambda: 0)
        plan = make_plan(read_checkpoint(source), knobs)
        fixed = plan_static(plan, *options.pop("static")) if "static" in options else None
        manifest = export_variant(plan, out, static=fixed, **options)
    assert manifest["verification"]["mode"] == "blockwise"
    return out


@pytest.fixture(scope="module")
def made(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small(molmo, tmp_path_factory.mktemp("blocks") / "v", Knobs(k=2, keep=(0, 1, 3), tokens=288))


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "v"))


def quiet(_: str) -> None:
    """Nobody listens."""


def test_golden_outputs_are_the_whole_models(made: Path) -> None:
    golden = load_file(made / FILE)
    assert "image.logits" not in golden
    with torch.no_grad():
        whole = load_model(made)(input_ids=torch.from_numpy(golden["ids"])).logits.numpy()
    assert np.abs(whole - golden["logits"]).max() <= 1e-6 * np.abs(whole).max()
    assert golden["ids"].shape[1] > PROMPT
    assert read_json(made / "manifest.json")["verification"]["golden_tokens"] == golden["ids"].shape[1]
    found = verify_directory(made, quiet)
    assert found["torch_vs_golden"].keys() == {"logits", "image.embeddings"}
    assert {"prefill", "decode", "padded"} <= found["onnx_vs_torch"].keys()
    assert found["onnx_vs_golden"].keys() == {"embeddings"}
    assert found["preprocess_vs_golden"].keys() == {"images"}
    assert not list(made.glob(".block*"))


def test_who_has_the_memory_checks_the_same_outputs_as_a_whole(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = verify_directory(made, quiet)
    assert found["torch_vs_golden"].keys() == {"logits", "image.embeddings"}
    assert found["onnx_vs_golden"].keys() == {"logits", "embeddings"}


def test_what_was_proven_as_a_whole_is_checked_block_by_block(
    olmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transform.machine, "free_memory", lambda: 1 << 40)
    manifest = export_variant(make_plan(read_checkpoint(olmoe), Knobs(k=2, keep=(0, 2, 5))), tmp_path / "v")
    monkeypatch.setattr(transform.machine, "free_memory", lambda: 0)
    assert manifest["verification"]["mode"] == "resident"
    assert verify_directory(tmp_path / "v", quiet)["torch_vs_golden"]["logits"] < 1e-5


@pytest.mark.parametrize(
    ("source", "knobs", "static", "measured"),
    [
        ("nano", Knobs(4, (0, 7), 288, form="int4", activations="int8"), None, "int8_activations"),
        ("molmo", Knobs(2, (0, 3), 288, form="cuda"), None, ""),
        ("olmoe", Knobs(2, (0, 3), dtype="bfloat16"), (64, 8), "static_vs_torch"),
    ],
)  # fmt: skip
def test_every_form_is_checked_block_by_block(
    molmo: Path, olmoe: Path, tmp_path: Path, source: str, knobs: Knobs, static: tuple[int, ...] | None, measured: str
) -> None:
    home = {"nano": DEFAULT, "molmo": molmo, "olmoe": olmoe}[source]
    out = export_small(home, tmp_path / "v", knobs, **({"static": static} if static else {}))
    found = verify_directory(out, quiet)
    assert {"torch_vs_golden", "onnx_vs_torch"} | ({measured} if measured else set()) <= found.keys()


def test_without_graphs_there_are_golden_outputs_too(molmo: Path, tmp_path: Path) -> None:
    out = export_small(molmo, tmp_path / "v", Knobs(2, (0, 3)), onnx=False)
    assert verify_directory(out, quiet)["torch_vs_golden"].keys() == {"logits", "image.embeddings"}


def test_swapped_experts_of_the_last_block_are_found(copied: Path) -> None:
    checkpoint = read_checkpoint(copied)
    a, b = (checkpoint.tensor("expert.down", 2, e) for e in (0, 1))
    data = bytearray(a.file.read_bytes())
    one, two = data[a.start : a.start + a.nbytes], data[b.start : b.start + b.nbytes]
    data[a.start : a.start + a.nbytes], data[b.start : b.start + b.nbytes] = two, one
    a.file.write_bytes(data)
    record_sums(copied)
    with pytest.raises(VerificationError, match="PyTorch, logits: must agree with the golden outputs"):
        verify_directory(copied, quiet)


@pytest.mark.parametrize("name", ["logits", "image.embeddings"])
def test_changed_golden_outputs_are_found(copied: Path, name: str) -> None:
    golden = load_file(copied / FILE)
    golden[name] = golden[name] + np.float32(0.01)
    save_file(golden, copied / FILE)
    record_sums(copied)
    with pytest.raises(VerificationError, match=f"PyTorch, {name}"):
        verify_directory(copied, quiet)


def test_golden_outputs_that_are_gone_are_missed(copied: Path) -> None:
    golden = load_file(copied / FILE)
    del golden["logits"]
    save_file(golden, copied / FILE)
    record_sums(copied)
    with pytest.raises(VerificationError, match="it must hold ids, logits"):
        verify_directory(copied, quiet)
    save_file({name: value for name, value in golden.items() if name.startswith("preprocess.")}, copied / FILE)
    record_sums(copied)
    with pytest.raises(VerificationError, match="must hold the outputs that were recorded"):
        verify_directory(copied, quiet)
    (copied / FILE).unlink()
    record_sums(copied)
    with pytest.raises(VerificationError, match="is missing, it was recorded"):
        verify_directory(copied, quiet)


def test_a_decoder_of_other_bytes_is_run_as_a_whole(copied: Path) -> None:
    """Another version may write another graph; it must mean the same."""
    model = onnx.load(copied / "text.onnx", load_external_data=False)
    model.producer_version = "another"
    onnx.save(model, copied / "text.onnx")
    record_sums(copied)
    assert verify_directory(copied, quiet)["onnx_vs_golden"].keys() == {"embeddings", "logits"}
    told = {entry.key: entry.value for entry in model.metadata_props}
    text_graph(set_top_k(read_checkpoint(copied), 1), REFERENCE).write(copied / "text.onnx")
    retell(copied / "text.onnx", told)
    record_sums(copied)
    with pytest.raises(VerificationError, match=r"text\.onnx: must agree with the golden outputs"):
        verify_directory(copied, quiet)


def test_outputs_end_before_what_float32_cannot_decide() -> None:
    """A token behind an undecidable choice may differ between correct programs; those before it can't."""
    ids = np.arange(8)[None]
    first, second = Stream(ids), Stream(ids + 1)
    for stream, gaps in ((first, [1, 1, 0, 1, 1, 1, 1, 1]), (second, [1, 1, 1, 1, 1, 1, 1e-8, 1])):
        stream._gaps = torch.tensor(gaps, dtype=torch.float32)
        stream.logits = torch.zeros(1, 8, 3)
    assert (first.decided, second.decided) == (2, 6)
    found = golden_of([first, second], LEAST)
    assert (found["ids"].tolist(), found["logits"].shape) == ([[1, 2, 3, 4, 5, 6]], (1, 6, 3))
    assert golden_of([first], LEAST) == {}


def test_a_model_that_decides_nothing_has_no_golden_outputs(
    molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MARGIN, 2.0)
    out = export_small(molmo, tmp_path / "v", Knobs(2, (0,), 288))
    assert all(name.startswith("preprocess.") for name in load_file(out / FILE))
    assert verify_directory(out, quiet)["golden"] == "none recorded"
    assert read_json(out / "manifest.json")["verification"]["mode"] == "blockwise"
