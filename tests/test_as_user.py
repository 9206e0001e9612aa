"""The gate takes the user's way: what can't be loaded, swallows its cache or has a damaged tokenizer isn't emitted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

import export.gate.as_user
import transform.machine
from export.gate.as_user import check_as_user
from export.gate.verify import verify_directory
from export.variant import export_variant
from tests.support.models import small_tokenizer
from tests.support.variants import record_sums
from transform.depth import drop_blocks
from transform.errors import KnobcastError, VerificationError
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.sizes import parameters

RUN_PROCESS = export.gate.as_user.run_process  # the process itself; `conftest.py` keeps a warm one for all other tests
NANO = Path(__file__).parents[1] / "artifacts" / "molmoe-nano"


def export_to(out: Path, source: Path, knobs: Knobs, **options: Any) -> dict[str, Any]:
    return export_variant(make_plan(read_checkpoint(source), knobs), out, **options)


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the embedded model: with tokenizer and processor, unverified."""
    out = tmp_path_factory.mktemp("user") / "variant"
    export_to(out, NANO, Knobs(2, (0, 3, 5), 288), verify=False, onnx=False)
    return out


@pytest.fixture
def changed(variant: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(variant, tmp_path / "changed"))


def test_the_process_itself(variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.gate.as_user, "run_process", RUN_PROCESS)
    before = {path.name for path in variant.iterdir()}
    found = check_as_user(read_checkpoint(variant))
    assert {path.name for path in variant.iterdir()} == before  # no cache of Python's either
    assert found["transformers"] == transformers.__version__
    assert found["reload"] == {"missing": 0, "mismatched": 0, "unexpected": 0}
    assert found["blocks"] == 3
    assert found["tokenizer_round_trip"] > 10
    assert set(found["generate"]) == {"batch", "image", "text"}
    assert [found["generate"][name]["tokens"] for name in ("batch", "image", "text")] == [12, 6, 6]
    assert all(record["same_tokens"] and record["difference"] < 1e-4 for record in found["generate"].values())


def test_the_process_sees_nothing_of_knobcast(changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.gate.as_user, "run_process", RUN_PROCESS)
    code = changed / "modeling_molmoe.py"
    code.write_text(code.read_text() + "\nimport transform.errors\n")
    with pytest.raises(VerificationError, match=r"its users do: .*transform can't be imported here"):
        check_as_user(read_checkpoint(changed))


def swallow_the_cache(code: str) -> str:
    return code.replace("**{CACHE: cache},", "")


def forget_positions(code: str) -> str:
    wrong = "            position_ids=position_ids * (past == 0),\n"
    return code.replace("            position_ids=position_ids,\n", wrong)


def ignore_the_mask(code: str) -> str:
    return code.replace("            attention_mask=attention_mask,\n            position", "            position")


def two_pictures(code: str) -> str:
    return code.replace("features[sample, crop, feature]", "features[sample, crop, feature] * (attempts := 1)").replace(
        "accumulate=True)", "accumulate=True) * (1 + 1e-2 * (len(input_ids) > 1))"
    )


@pytest.mark.parametrize("change", [swallow_the_cache, forget_positions, ignore_the_mask, two_pictures])
def test_travelling_code_that_generates_wrongly_is_refused(changed: Path, change: Callable[[str], str]) -> None:
    code = changed / "modeling_molmoe.py"
    wrong = change(code.read_text())
    assert wrong != code.read_text()
    code.write_text(wrong)
    with pytest.raises(VerificationError, match=r"generate with a cache must give .* tokens .* logits differ by"):
        check_as_user(read_checkpoint(changed))


def test_code_that_does_not_travel_is_refused(changed: Path) -> None:
    (changed / "versions.py").unlink()
    with pytest.raises(VerificationError, match=r"as its users do: .*versions"):
        check_as_user(read_checkpoint(changed))


def test_the_manifest_and_the_card_have_it(molmo: Path, tmp_path: Path) -> None:
    manifest = export_to(tmp_path / "v", molmo, Knobs(2, (0, 1), 288), onnx=False)
    found = manifest["verification"]["as_user"]
    assert set(found["generate"]) == {"batch", "text", "short text"}  # without a tokenizer there is no processor
    assert "tokenizer_round_trip" not in found
    assert manifest["tested"] == {"transformers": ["5.23", "5.24"]}
    card = (tmp_path / "v" / "README.md").read_text()
    assert "as users load it, generate == no cache: batch" in card
    assert "Tested with transformers 5.23 to 5.24." in card


def test_verify_runs_no_code_of_others(molmo: Path, tmp_path: Path) -> None:
    """A variant that somebody else signed; one of an older version is the same case."""
    export_to(tmp_path / "v", molmo, Knobs(2, (0, 1), 288), onnx=False)
    assert set(verify_directory(tmp_path / "v", lambda _: None)["as_user"]["generate"]) == {
        "batch",
        "text",
        "short text",
    }
    code, trace = tmp_path / "v" / "versions.py", tmp_path / "was-run"
    code.write_text(code.read_text() + f"\nopen({str(trace)!r}, 'w').close()\n")
    record_sums(tmp_path / "v")
    found = verify_directory(tmp_path / "v", lambda _: None)
    assert found["as_user"] == "not run: versions.py isn't this version's code, and no other is executed"
    assert not trace.exists()


def test_stock_families_by_stock_classes(olmoe: Path, tmp_path: Path) -> None:
    found = export_to(tmp_path / "v", olmoe, Knobs(2, (0, 1, 4)), onnx=False)["verification"]["as_user"]
    assert set(found["generate"]) == {"batch", "text", "short text"}
    assert found["blocks"] == 3


def test_as_many_blocks_as_fit(molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = read_checkpoint(molmo)
    one_more = parameters(drop_blocks(checkpoint, range(2))) * 4 * 3
    monkeypatch.setattr(transform.machine, "free_memory", lambda: one_more)
    found = export_to(tmp_path / "v", molmo, Knobs(2, (0, 1, 3), 288), onnx=False)["verification"]
    assert found["mode"] == "blockwise"
    assert found["as_user"]["blocks"] == 2
    assert found["as_user"]["reload"]["unexpected"] == 0
    monkeypatch.setattr(transform.machine, "free_memory", lambda: 0)
    assert transform.machine.fitting_blocks(checkpoint) == 1


def test_what_is_stored_in_16_bits_computes_in_float32(molmo: Path, tmp_path: Path) -> None:
    """The tower as well, whose weights are widened only while they compute."""
    manifest = export_to(tmp_path / "v", molmo, Knobs(2, (0, 1), 288, dtype="bfloat16"), onnx=False)
    for found in manifest["verification"]["as_user"]["generate"].values():
        assert found["difference"] <= 1e-5 * found["largest_value"]


def test_quantised_weights_are_for_graphs_alone(tmp_path: Path) -> None:
    manifest = export_to(tmp_path / "v", NANO, Knobs(1, (0,), 288, form="int4"))
    found = manifest["verification"]["as_user"]
    assert found["generate"] == {}
    assert found["tokenizer_round_trip"] > 10  # loaded by the processor, which does travel


DAMAGED = {
    "cut": lambda text: text[:1000],
    "empty": lambda text: b"",
    "a list": lambda text: b"[]",
    "a text": lambda text: b'"x"',
    "not UTF-8": lambda text: text.replace(b'"version"', b'"version\xff"', 1),
}


@pytest.mark.parametrize("how", DAMAGED)
@pytest.mark.parametrize("verify", [True, False])
def test_a_damaged_tokenizer_is_refused_before_anything_is_written(how: str, verify: bool, tmp_path: Path) -> None:
    source = Path(shutil.copytree(NANO, tmp_path / "source", ignore=shutil.ignore_patterns("data", "*.json.svg")))
    file = source / "tokenizer.json"
    file.write_bytes(DAMAGED[how](file.read_bytes()))
    with pytest.raises(KnobcastError, match=r"tokenizer\.json"):
        export_to(tmp_path / "v", source, Knobs(1, (0,), 288), verify=verify, onnx=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_tokenizer_that_gives_nothing_back_is_refused(changed: Path) -> None:
    tokenizer = json.loads((changed / "tokenizer.json").read_text())
    other = json.loads(small_tokenizer(250).backend_tokenizer.to_str())
    tokenizer["model"] = other["model"] | {"vocab": {"@": 0}, "unk_token": "@"}  # every word is this one
    tokenizer["pre_tokenizer"] = other["pre_tokenizer"]
    tokenizer["decoder"] = {"type": "Replace", "pattern": {"String": "@"}, "content": ""}
    (changed / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(VerificationError, match="the tokenizer must give 'What is this"):
        check_as_user(read_checkpoint(changed))
