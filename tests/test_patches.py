"""Pictures of stock models in the gate: a variant equals its source with the same knobs at run time, exactly, and
pictures show what text alone doesn't."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import export.gate.choose
from export.files.facts import check_facts
from export.gate.compare import exactly_equal
from export.gate.picture_probe import drawn_probe, insist_on_pictures, picture_probe
from export.gate.verify import verify_directory
from export.variant import export_variant, seal, write
from tests.support.processors import FILE, add_processor
from tests.support.stock_models import logits, looked_at
from tests.support.stock_models import one_thread as one_thread
from tests.support.zoo import ZOO, make
from transform.checkpoint import Checkpoint
from transform.depth import view_blocks
from transform.errors import VerificationError
from transform.knobs import Knobs
from transform.load import load_model
from transform.plan import Plan, make_plan
from transform.read import read_checkpoint
from transform.runtime import knobs_at_run_time
from transform.strict_json import read_json
from transform.write import write_checkpoint, write_json

SEEING = ("qwen3_vl_moe", "qwen3_5_moe", "glm4v_moe", "ernie4_5_vl_moe")
OTHERS = ("aria", "gemma4", "kimi_k25", "molmo2")  # whose pictures are noise
KEEP, TOKENS = (0, 1, 2, 3, 5), 72
KEPT = {"gemma4": (0, 1, 2, 3)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_processor(make("qwen3_vl_moe", tmp_path_factory.mktemp("seeing") / "source"))


@pytest.fixture(scope="module")
def plan(source: Path) -> Plan:
    return make_plan(read_checkpoint(source), Knobs(2, KEEP, TOKENS))


@pytest.fixture(scope="module")
def variant(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write(plan, tmp_path_factory.mktemp("variant"), onnx=False)


@pytest.fixture(scope="module")
def twin(source: Path) -> Iterator[PreTrainedModel]:
    yield load_model(source)


def test_a_variant_sees_what_the_source_does_with_the_knobs(
    plan: Plan, variant: Checkpoint, twin: PreTrainedModel
) -> None:
    """The static processor and the static model, the processor's size and the model's knobs at run time."""
    probe, model = picture_probe(plan, variant), load_model(variant.path)
    assert probe is not None
    assert plan.pictures is not None
    counts = (probe.ours["image_grid_thw"].prod(-1) // 4).tolist()
    assert counts == [plan.pictures.budget.count(*size) for size in ((110, 150), (40, 97), (90, 31))]
    assert len(set(counts)) == 3
    assert int((probe.ids == 200).sum()) == sum(counts)
    with knobs_at_run_time(twin, KEEP, plan.target.settings.top_k):
        found = exactly_equal(probe.run(model, probe.ours), probe.run(twin, probe.theirs))
    assert found == {"picture": 0.0, "picture_decode": 0.0}
    insist_on_pictures(model, probe)


@pytest.mark.parametrize(("keep", "alike"), [(KEEP, True), ((1, 2, 3, 4, 5), False)])
def test_pictures_show_what_text_does_not(
    keep: tuple[int, ...], alike: bool, source: Path, twin: PreTrainedModel, tmp_path: Path
) -> None:
    """Against the full model whose other blocks do nothing in their places: text is the same without a block that
    receives features by its place, pictures aren't, and so no plan drops one."""
    write_checkpoint(view_blocks(read_checkpoint(source), keep), tmp_path)
    probe, model = drawn_probe(read_checkpoint(tmp_path)), load_model(tmp_path)
    assert probe is not None
    with looked_at(twin, keep, None):
        assert torch.equal(logits(model), logits(twin))
        pictures = (probe.run(side, probe.ours, caching=False)["picture"] for side in (model, twin))
        assert torch.equal(*pictures) == alike


def test_a_processor_that_does_not_keep_the_budget_is_found(plan: Plan, variant: Checkpoint) -> None:
    path = variant.path / FILE
    before = read_json(path)
    try:
        write_json(path, before | {"size": {"shortest_edge": 64 * 40, "longest_edge": 64 * 50}})
        with pytest.raises(VerificationError, match="must prepare pictures as the source's"):
            picture_probe(plan, variant)
    finally:
        write_json(path, before)


def test_a_model_that_sees_nothing_is_found(source: Path, plan: Plan, variant: Checkpoint) -> None:
    probe, model = picture_probe(plan, variant), load_model(source)
    assert probe is not None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "merger" in name:
                parameter.zero_()
    with pytest.raises(VerificationError, match="other pictures must give other logits"):
        insist_on_pictures(model, probe)


def test_the_manifest_says_what_the_processor_holds(plan: Plan, variant: Checkpoint) -> None:
    path, manifest = variant.path / FILE, seal(plan, variant, None, onnx=False)
    assert check_facts(manifest, variant) > 10
    card = (variant.path / "README.md").read_text()
    assert f"Images: budget {TOKENS} tokens of 8×8 pixels; 54 to 72 for a picture up to 5:1" in card
    with pytest.raises(VerificationError, match=r"pixels is .* it says"):
        check_facts(manifest | {"pixels": manifest["pixels"] | {"most": 71}}, variant)
    with pytest.raises(VerificationError, match="pixels"):
        check_facts({key: value for key, value in manifest.items() if key != "pixels"}, variant)
    before = read_json(path)
    try:
        write_json(path, before | {"size": {"shortest_edge": 64 * 54, "longest_edge": 64 * 73}})
        with pytest.raises(VerificationError, match=r"pixels: preprocessor_config\.json: size must be a budget"):
            check_facts(manifest, variant)
    finally:
        write_json(path, before)


@pytest.mark.extra
@pytest.mark.parametrize(("name", "budget"), [*product(SEEING, (None, TOKENS)), *product(OTHERS, (None,))])
def test_pictures_pass_the_gate(name: str, budget: int | None, tmp_path: Path) -> None:
    """With a budget by the processor and as users call it, without one and without a processor as noise."""
    place = make(name, tmp_path / "source")
    if budget:
        add_processor(place)
    plan = make_plan(read_checkpoint(place), Knobs(None if ZOO[name].fixed else 2, KEPT.get(name, KEEP), budget))
    manifest = export_variant(plan, tmp_path / "variant", onnx=False)
    found = manifest["verification"]
    compared = found["static_vs_dynamic"]
    assert "pipeline_tag: image-text-to-text" in (tmp_path / "variant" / "README.md").read_text()
    assert compared.keys() == {"prefill", "decode", "padded", "picture", "picture_decode"}
    assert set(compared.values()) == {0.0}
    assert ("picture" in found["as_user"]["generate"]) == (budget is not None)
    again = verify_directory(tmp_path / "variant")
    assert again["torch_vs_golden"] == {"logits": 0.0, "picture.logits": 0.0}


@pytest.mark.extra
@pytest.mark.parametrize("name", [*SEEING, *OTHERS])
def test_pictures_pass_block_by_block(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.gate.choose, "fits", lambda _: False)
    place, tokens = make(name, tmp_path / "source"), TOKENS if name in SEEING else None
    if tokens:
        add_processor(place)
    knobs = Knobs(None if ZOO[name].fixed else 2, KEPT.get(name, KEEP), tokens)
    manifest = export_variant(make_plan(read_checkpoint(place), knobs), tmp_path / "variant", onnx=False)
    found = manifest["verification"]
    assert found["mode"] == "blockwise"
    assert found["static_vs_dynamic"]["picture"] == 0.0
    verify_directory(tmp_path / "variant")
