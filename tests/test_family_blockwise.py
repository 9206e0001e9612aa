"""Families that don't fit into memory: proven block by block, for every k that a member gives a block."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

import export.family.blockwise
import export.gate.compare
import export.gate.resident
import export.graph.decoder
import transform.load
import transform.machine
from export.family.family import verify_family
from export.files.integrity import external_tensors
from tests.support.families import NAMES, write_family, write_scores
from tests.support.variants import read_json, record_sums
from transform.checkpoint import Checkpoint
from transform.errors import VerificationError
from transform.forms import Form
from transform.read import read_checkpoint
from transform.top_k import set_top_k


@pytest.fixture(autouse=True)
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fits, and whoever loads a whole model fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole model was loaded")

    monkeypatch.setattr(transform.machine, "free_memory", lambda: 0)
    monkeypatch.setattr(transform.load, "load_model", refuse)
    for name in ("load_model", "load_with_report", "source_model"):
        monkeypatch.setattr(export.gate.resident, name, refuse)


def write(molmo: Path, out: Path, form: str = "cpu") -> dict[str, Any]:
    return write_family(molmo, out, tokens=288, scores=write_scores(out.parent), form=form)


@pytest.fixture(scope="module")
def made(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("families") / "family"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transform.machine, "free_memory", lambda: 0)
        write(molmo, out)
    return out


@pytest.mark.parametrize("form", ["cpu", "int4"])
def test_members_are_proven_block_by_block(
    molmo: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On export and by `verify`; of all pairs of block and k each is measured once, over a block loaded once."""
    loaded: Counter[int] = Counter()
    right = transform.load.load_view

    def counting(view: Checkpoint, **others: Any) -> Any:
        first = view.tensor("attention.norm", 0)
        loaded[first.start] += 1
        return right(view, **others)

    monkeypatch.setattr(export.family.blockwise, "load_view", counting)
    said: list[str] = []
    record = write(molmo, tmp_path / "family", form)
    assert list(loaded.values()) == [1] * 4
    assert read_json(tmp_path / "family" / "manifest.json")["verification"]["mode"] == "blockwise"
    assert [entry["name"] for entry in record["members"]] == NAMES
    for entry, blocks in zip(record["members"], (3, 4, 3), strict=True):
        found = entry["verification"]
        assert (found["mode"], found["blocks"]) == ("blockwise", blocks)
        measured = [found["onnx_vs_torch"][part] for part in ("prefill", "decode", "padded")]
        assert 0 < max(measured) <= 1e-5 * found["onnx_vs_torch"]["largest_value"]
        assert found["other_k"]["difference"] > 1e-3
    assert record["members"][2]["verification"]["other_k"]["k"] == [2, 2, 3]
    results = verify_family(tmp_path / "family", said.append)
    assert results["members"] == {e["name"]: e["verification"]["onnx_vs_torch"] for e in record["members"]}
    pairs = [line.partition(":")[0] for line in said if line.startswith("block")]
    assert pairs == [f"block {b}, k={k}" for b, k in ((0, 1), (0, 2), (1, 2), (2, 1), (2, 2), (3, 2), (3, 4))]
    assert not list((tmp_path / "family").glob(".block*"))


@pytest.mark.parametrize("change", ["graph", "blocks_kept", "top_k"])
def test_a_member_of_other_blocks_or_another_k_is_refused(made: Path, tmp_path: Path, change: str) -> None:
    family = Path(shutil.copytree(made, tmp_path / "family"))
    if change == "graph":
        shutil.copyfile(family / "text-k1x2.4x1-b3.onnx", family / "text-k2-b3.onnx")
    else:
        record = read_json(family / "family.json")
        record["members"][0][change] = {"blocks_kept": [0, 1, 3], "top_k": [2, 2, 1]}[change]
        (family / "family.json").write_text(json.dumps(record))
    record_sums(family)
    with pytest.raises(VerificationError, match=r"member k2-b3: text-k2-b3\.onnx must hold the bytes"):
        verify_family(family, lambda _: None)


def test_a_member_graph_that_swaps_two_blocks_is_refused(made: Path, tmp_path: Path) -> None:
    """The weights of block 2 where block 3's belong, all else in place: only the bytes can tell."""
    family = Path(shutil.copytree(made, tmp_path / "family"))
    written, graph = read_checkpoint(family), family / "text-k2-b4.onnx"
    model = onnx.load(graph, load_external_data=False)
    places = {entry.value: entry for t in external_tensors(model.graph) for entry in t.external_data}
    one, two = (places[str(written.tensor("router", i).start)] for i in (2, 3))
    one.value, two.value = two.value, one.value
    graph.write_bytes(model.SerializeToString(deterministic=True))
    record_sums(family)
    with pytest.raises(VerificationError, match=r"member k2-b4: .* must hold the bytes"):
        verify_family(family, lambda _: None)


@pytest.mark.parametrize("form", ["cpu", "int4"])
def test_one_block_that_is_wrong_for_one_k_is_found(
    molmo: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emitter that errs in members and in single blocks alike: no comparison of bytes would notice."""
    right = export.graph.decoder.text_graph
    wanted = read_checkpoint(molmo).tensor("attention.norm", 2)

    def wrong(checkpoint: Checkpoint, form: Form) -> Any:
        k = list(checkpoint.settings.top_k)
        for i in range(checkpoint.settings.layers):
            norm = checkpoint.tensor("attention.norm", i)
            same = norm.file.read_bytes()[norm.start :][: norm.nbytes] == content
            k[i] = 3 if same and k[i] == 1 else k[i]
        return right(set_top_k(checkpoint, k), form)

    content = wanted.file.read_bytes()[wanted.start :][: wanted.nbytes]
    monkeypatch.setattr(export.graph.decoder, "text_graph", wrong)
    with pytest.raises(VerificationError, match="block 2, k=1: prefill"):
        write(molmo, tmp_path / "family", form)
    assert not (tmp_path / "family").exists()


def test_a_k_that_changes_nothing_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.gate.compare, "largest_difference", lambda *_: 0.0)
    with pytest.raises(VerificationError, match=r"block 0, k=1: .* ignores its top-k"):
        verify_family(made, lambda _: None)
