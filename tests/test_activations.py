"""`--activations int8`: the graphs that kernels for 8-bit rows read, what they mean, how far they may go, refusals."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

import export.gate.activations
from export.command.main import app
from export.gate.activations import check_activations, distance
from export.gate.checking import checking_graphs
from export.run.graphs import Graphs
from export.run.oldest import too_old_for
from export.variant import export_variant
from tests.support.decoders import DECODERS, write_decoder
from tests.support.parity_activations import rounding_by_case
from transform.errors import KnobError, VerificationError
from transform.forms import form_named
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint


@pytest.fixture(scope="module")
def variant(olmoe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified variant of int4 with int8 activations."""
    out = tmp_path_factory.mktemp("a8") / "v"
    export_variant(make_plan(read_checkpoint(olmoe), Knobs(k=2, form="int4", activations="int8")), out)
    return out


def test_every_quantised_product_is_told(variant: Path) -> None:
    graph = onnx.load(variant / "text.onnx", load_external_data=False).graph
    packed = [node for node in graph.node if node.op_type in ("MatMulNBits", "QMoE")]
    levels = {onnx.helper.get_node_attr_value(node, "accuracy_level") for node in packed}
    assert {node.op_type for node in packed} == {"MatMulNBits", "QMoE"} and levels == {4}


def test_it_says_so_everywhere(variant: Path, olmoe: Path) -> None:
    config, io, manifest = (json.loads((variant / n).read_text()) for n in ("config.json", "io.json", "manifest.json"))
    assert config["quantization_config"]["activations"] == io["activations"] == "int8"
    assert manifest["knobs"]["activations"] == "int8" and manifest["name"].endswith("-int4-a8")
    assert io["onnxruntime"] == io["onnxruntime_by_graph"]["text.onnx"] == ">=1.31"
    found = manifest["verification"]["int8_activations"]
    assert 0 < found["typical"] < 0.1 and found["root_mean_square"] > 0
    assert max(manifest["verification"]["onnx_vs_torch"][n] for n in ("prefill", "decode", "padded")) < 1e-5


def test_the_card_has_each_graphs_onnxruntime_and_the_tolerance(variant: Path, olmoe: Path, tmp_path: Path) -> None:
    rounded = json.loads((variant / "manifest.json").read_text())["verification"]["int8_activations"]
    said = (variant / "README.md").read_text()
    assert "| `text.onnx` | 1.31 |" in said
    assert f"{rounded['typical']:.2g} of their size away (root mean square; at most 0.1), over all" in said
    export_variant(make_plan(read_checkpoint(olmoe), Knobs(k=2, form="int4")), tmp_path / "v", verify=False)
    usual = (tmp_path / "v" / "README.md").read_text()
    assert "| `text.onnx` | 1.25 |" in usual
    assert "8 bits (`--activations" in said
    assert "8 bits (`--activations" not in usual


def test_a_benchmarks_record_says_so(variant: Path, olmoe: Path, tmp_path: Path) -> None:
    export_variant(make_plan(read_checkpoint(olmoe), Knobs(k=2)), tmp_path / "v", verify=False)
    for directory, said in ((variant, "int8"), (tmp_path / "v", None)):
        asked = ["bench", str(directory), "--json", "--dry-run", "--prompt-tokens", "9", "--new-tokens", "2"]
        done = CliRunner().invoke(app, asked)
        assert json.loads(done.stdout)["activations"] == said


def test_without_repacking_nothing_is_rounded(variant: Path) -> None:
    """What the gate relies on: the shipped graph itself is exact there, and isn't as users run it."""
    ids = np.arange(3, 21, dtype=np.int64)[None]
    exact, users = (
        graphs.step(ids, np.ones_like(ids), graphs.empty_cache(1))[0]
        for graphs in (checking_graphs(variant), Graphs(variant))
    )
    assert 1e-4 < np.abs(exact - users).max() < 0.3 * np.abs(exact).max()


def test_the_parity_set_stays_within_the_tolerance(tmp_path: Path) -> None:
    """Pictures, padding and a k of its own for every block; all variants: tests/bench_activations.py."""
    found = rounding_by_case(tmp_path, ["k4212"])
    assert len(found) == 8
    assert 1e-4 < min(found.values()) <= max(found.values()) < export.gate.activations.TOLERANCE


def test_kernels_that_round_more_are_refused(variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(3, 21, dtype=np.int64)[None]
    exact = checking_graphs(variant)
    logits, _ = exact.step(ids, np.ones_like(ids), exact.empty_cache(1))
    assert check_activations(Graphs(variant), ids, logits, lambda: exact)["root_mean_square"] > 0
    monkeypatch.setattr(export.gate.activations, "TOLERANCE", 1e-5)
    with pytest.raises(VerificationError, match=r"at most 1e-05 .*for 4 prompts.*--activations float32"):
        check_activations(Graphs(variant), ids, logits, lambda: exact)


def test_a_few_positions_with_another_expert_are_no_fault_of_the_kernels() -> None:
    """Rounding may decide between two experts; a kernel that is wrong is so everywhere."""
    generator = np.random.default_rng(1)
    logits, noise = generator.standard_normal((1, 18, 50)), generator.standard_normal((1, 18, 50))
    moved = logits + 0.02 * noise
    moved[:, 4:9] = logits[:, 4:9] + 0.5 * noise[:, 4:9]
    found = distance(moved, logits)
    assert found["typical"] < 0.03 < export.gate.activations.TOLERANCE < found["root_mean_square"]
    assert distance(logits + 0.2 * noise, logits)["typical"] > 0.15
    assert np.isnan(distance(np.full_like(logits, np.nan), logits)["typical"])


def test_another_prompt_is_asked_before_a_variant_is_refused(variant: Path) -> None:
    """Golden logits of other tokens: as if the first had met other experts."""
    ids = np.arange(3, 21, dtype=np.int64)[None]
    exact = checking_graphs(variant)
    logits, _ = exact.step(ids[:, ::-1].copy(), np.ones_like(ids), exact.empty_cache(1))
    assert check_activations(Graphs(variant), ids, logits, lambda: exact)["typical"] < 0.05


@pytest.mark.extra
@pytest.mark.parametrize("form", ["int4", "int8"])
@pytest.mark.parametrize("name", DECODERS)
def test_every_family_takes_rounded_activations(name: str, form: str, tmp_path: Path) -> None:
    source = read_checkpoint(write_decoder(name, tmp_path / "source", torch.bfloat16))
    verified = export_variant(make_plan(source, Knobs(form=form, activations="int8")), tmp_path / "v")["verification"]
    assert 0.005 < verified["int8_activations"]["typical"] < export.gate.activations.TOLERANCE


@pytest.mark.parametrize(
    ("asked", "given"), [(None, "int8"), ("float32", "float32"), ("int8", "int8")], ids=["unsaid", "float32", "int8"]
)
def test_a_variants_variants_have_what_it_has(variant: Path, asked: str | None, given: str) -> None:
    assert make_plan(read_checkpoint(variant), Knobs(k=1, activations=asked)).activations == given


def test_float_forms_have_none(olmoe: Path) -> None:
    source = read_checkpoint(olmoe)
    assert make_plan(source, Knobs()).activations is None
    assert make_plan(source, Knobs(form="int4")).activations == "float32"
    with pytest.raises(KnobError, match="cpu form has none"):
        make_plan(source, Knobs(activations="int8"))
    with pytest.raises(KnobError, match="activations must be float32 or int8, got 'int4'"):
        Knobs(form="int4", activations="int4")


def test_an_older_onnxruntime_is_named_before_anything_is_written() -> None:
    form = form_named("int4")
    assert too_old_for(form, "1.30.0") is None
    assert "as of onnxruntime 1.31, this is 1.30.0" in str(too_old_for(form, "1.30.0", "int8"))
    assert too_old_for(form, "1.31.0", "int8") is None
    assert too_old_for(form_named("int8"), "1.25.0", "int8") is None
