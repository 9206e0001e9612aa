"""Every fact of a manifest is computed again by verify; one that isn't so is named."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from export.files.facts import check_facts
from export.files.verification import Verification
from export.gate.verify import verify_directory
from export.variant import export_variant
from transform.errors import VerificationError
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import DEFAULT

SETTINGS = {
    "plain": ("molmo", Knobs()),
    "everything": ("molmo", Knobs(k=(2, 1), keep=(0, 3), tokens=432, dtype="float16")),
    "a tier": ("nano", Knobs(k=2, keep=(0, 5), tokens="low")),
    "text": ("olmoe", Knobs(k=2, keep=(0, 2, 5))),
    "bfloat16": ("olmoe", Knobs(keep=(1,), dtype="bfloat16")),
    "cuda": ("molmo", Knobs(k=2, form="cuda")),
    "int4": ("nano", Knobs(k=4, keep=(0, 1), form="int4")),
    "int8": ("nano", Knobs(k=4, keep=(0, 1), form="int8", tokens=288)),
}


@pytest.fixture(scope="module")
def made(molmo: Path, olmoe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Unverified variants: their facts are the same."""
    sources = {"molmo": molmo, "olmoe": olmoe, "nano": DEFAULT}
    place, found = tmp_path_factory.mktemp("facts"), {}
    for name, (source, knobs) in SETTINGS.items():
        export_variant(make_plan(read_checkpoint(sources[source]), knobs), place / name, verify=False)
        found[name] = place / name
    return found


def manifest_of(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "manifest.json").read_text()))


@pytest.mark.parametrize("name", SETTINGS)
def test_what_an_export_says_is_so(made: dict[str, Path], name: str) -> None:
    assert check_facts(manifest_of(made[name]), read_checkpoint(made[name])) > 14


def test_a_variant_of_a_variant_says_what_is_so(made: dict[str, Path], tmp_path: Path) -> None:
    for name, knobs in (("a tier", Knobs(k=1)), ("int4", Knobs(k=2, keep=(1,))), ("cuda", Knobs(k=1, keep=(0, 2)))):
        plan = make_plan(read_checkpoint(made[name]), knobs)
        export_variant(plan, tmp_path / name, verify=False)
        assert check_facts(manifest_of(tmp_path / name), read_checkpoint(tmp_path / name)) > 14


def altered(value: Any) -> list[Any]:
    """Other values of the same sort, and of others."""
    if isinstance(value, bool) or value is None:
        return ["x", [], 1.5]
    if isinstance(value, int):
        return [value + 1, value - 1, float(value) + 0.5, str(value), None, -value, 10**30]
    if isinstance(value, str):
        return [value + "x", value.upper() + "_", None, 7]
    if isinstance(value, list):
        return [[*value, 1], [*value[:-1], 99], value[1:] if value else [0], None, "x", {}] if value else [[0], None]
    return [None, "x", []]


FACTS = [
    "schema", "model_type", "blocks_kept", "blocks_removed", "top_k", "parameters", "active_parameters", "bytes",
    "files.layout_digest", "source.blocks", "source.top_k", "source.parameters", "source.active_parameters",
    "knobs.blocks", "knobs.k", "vision", "vision.tokens", "vision.crops", "vision.max_crops", "vision.resize",
    "vision.rule", "vision.tilings",
]  # fmt: skip


@pytest.mark.parametrize("path", FACTS)
@pytest.mark.parametrize("name", ["everything", "text", "int4"])
def test_a_fact_that_is_not_so_is_named(made: dict[str, Path], name: str, path: str) -> None:
    checkpoint, manifest = read_checkpoint(made[name]), manifest_of(made[name])
    *outer, last = path.split(".")
    place = manifest
    for key in outer:
        place = place[key] or {}
    if last not in place:
        return  # models without pictures have no policy
    original = copy.deepcopy(place[last])
    for value in altered(original):
        place[last] = value
        with pytest.raises(VerificationError, match=r"manifest\.json must"):
            check_facts(manifest, checkpoint)
    if path != "files.layout_digest":  # early manifests have none
        del place[last]
        with pytest.raises(VerificationError, match=r"manifest\.json must"):
            check_facts(manifest, checkpoint)
    place[last] = original
    check_facts(manifest, checkpoint)


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("everything", "dtype", "float32"), ("everything", "dtype", "bfloat16"), ("everything", "dtype", "int3"),
        ("everything", "tokens", 288), ("everything", "form", "int8"), ("bfloat16", "dtype", "float16"),
        ("int4", "form", "int8"), ("int4", "form", "cpu"), ("cuda", "form", "cpu"), ("text", "form", "int4"),
        ("text", "dtype", "float16"), ("text", "form", "half"), ("text", "form", ["cpu"]),
    ],
)  # fmt: skip
def test_knobs_that_were_others_are_named(made: dict[str, Path], name: str, word: str, value: Any) -> None:
    manifest = manifest_of(made[name])
    manifest["knobs"][word] = value
    with pytest.raises(VerificationError, match=r"manifest\.json must"):
        check_facts(manifest, read_checkpoint(made[name]))


def test_blocks_that_are_said_to_be_others_are_named(made: dict[str, Path]) -> None:
    """As many as there are, and in order: the source's k per block tells, or what was removed."""
    manifest = manifest_of(made["text"])
    manifest["blocks_kept"] = [0, 1, 5]
    with pytest.raises(VerificationError, match="blocks_removed"):
        check_facts(manifest, read_checkpoint(made["text"]))
    for kept in ([5, 2, 0], [0, 2, 2], [0, 2, 6], [-1, 0, 2], [0.0, 2, 5], ["0", "2", "5"]):
        manifest["blocks_kept"] = kept
        with pytest.raises(VerificationError, match=r"manifest\.json must"):
            check_facts(manifest, read_checkpoint(made["text"]))


def test_a_policy_that_other_files_contradict_is_named(made: dict[str, Path], tmp_path: Path) -> None:
    for file in ("processor_config.json", "io.json"):
        place = Path(shutil.copytree(made["a tier"], tmp_path / file))
        said = json.loads((place / file).read_text())
        if file == "io.json":
            said["vision"]["tilings"] = said["vision"]["tilings"][:-1]
        else:
            said["resize"] = "fill"
        (place / file).write_text(json.dumps(said))
        with pytest.raises(VerificationError, match=r"policy of images|vision by io"):
            check_facts(manifest_of(place), read_checkpoint(place))


@pytest.mark.parametrize("said", [{}, {"form": None}])
def test_a_form_that_io_json_leaves_open_is_the_usual_one(made: dict[str, Path], tmp_path: Path, said: Any) -> None:
    place = Path(shutil.copytree(made["a tier"], tmp_path / "v"))
    io = json.loads((place / "io.json").read_text())
    del io["form"]
    (place / "io.json").write_text(json.dumps(io | said))
    assert check_facts(manifest_of(place), read_checkpoint(place)) == check_facts(
        manifest_of(made["a tier"]), read_checkpoint(made["a tier"])
    )


@pytest.mark.parametrize("verification", ["resident", {}, {"mode": "residential"}, {"note": "resident"}, None, []])
def test_how_it_was_verified_is_a_field(verification: Any) -> None:
    assert Verification.parse({"mode": "blockwise", "note": "not resident"}) == Verification(mode="blockwise")
    assert Verification.parse("skipped") is None
    with pytest.raises(VerificationError, match=r"verification\.onnx_vs_torch"):
        Verification.parse({"mode": "resident", "onnx_vs_torch": 0.0})
    with pytest.raises(VerificationError, match=r"verification\.mode"):
        Verification.parse(verification)


def test_verify_refuses_another_manifest(molmo: Path, tmp_path: Path) -> None:
    export_variant(make_plan(read_checkpoint(molmo), Knobs(k=2, keep=(0, 2))), tmp_path / "v", onnx=False)
    manifest = manifest_of(tmp_path / "v")
    passed = Verification.parse(manifest["verification"])
    assert passed is not None
    assert passed.as_dict() == manifest["verification"]
    for key, value in (("blocks_kept", [0, 1]), ("parameters", 7), ("source", {}), ("vision", None)):
        (tmp_path / "v" / "manifest.json").write_text(json.dumps(manifest | {key: value}))
        with pytest.raises(VerificationError, match=r"manifest\.json must"):
            verify_directory(tmp_path / "v", lambda _: None)
    (tmp_path / "v" / "manifest.json").write_text(json.dumps(manifest))
    assert verify_directory(tmp_path / "v", lambda _: None)["facts"] > 14
