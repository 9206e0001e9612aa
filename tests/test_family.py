"""Families: one set of weights, a proven graph per setting, members that can be made standalone."""

import filecmp
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch_file
from typer.testing import CliRunner

import export.graph.decoder
from export.command.main import app
from export.family.family import export_family, plan_family, plan_member, verify_family
from export.family.grid import MOST_MEMBERS, Setting, parse_grid
from export.files.integrity import external_tensors, sha256_file
from export.run.family_file import Family
from export.run.graphs import Graphs
from export.variant import export_variant
from tests.support.families import GRID, NAMES, write_family, write_scores
from tests.support.paths import ROOT
from tests.support.variants import read_json, record_sums, retell
from transform.errors import KnobcastError, KnobError, ScoresError, VerificationError, WriteError
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint

PYTHON = ROOT / ".venv-genai" / "bin" / "python"


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_scores(tmp_path_factory.mktemp("scores"))


@pytest.fixture(scope="module")
def made(molmo: Path, scores: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("families") / "family"
    write_family(molmo, out, GRID, tokens=288, scores=scores)
    return out


@pytest.mark.parametrize(
    ("grid", "settings"),
    [
        ("k=1,2 blocks=8,16", [(1, 8), (1, 16), (2, 8), (2, 16)]),
        ("blocks=8  k=4", [(4, 8)]),
        ("k=4", [(4, 16)]),
        ("blocks=8,10", [(None, 8), (None, 10)]),
        ("k=4,8x1.4x2 blocks=3,8", [(4, 3), (4, 8), ((8, 4, 4), 3)]),
        ("k=8x2.4x14", [((8,) * 2 + (4,) * 14, 16)]),
    ],
)
def test_a_grid_is_read_in_its_order(grid: str, settings: list[Any]) -> None:
    assert parse_grid(grid, 16) == tuple(Setting(*setting) for setting in settings)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("", "at least one axis"),
        ("k", "got 'k'"),
        ("depth=3", "'depth=3'"),
        ("k=1 k=2", "k occurs twice"),
        ("k=", "got ''"),
        ("k=0", "from 1"),
        ("k=1,,2", "got ''"),
        ("k=-1", "'-1'"),
        ("k=1;2", "'1;2'"),
        ("k=" + "9" * 5000, "whole numbers"),
        ("blocks=17", "from 1 to 16 .* got 17"),
        ("blocks=8x2", "'8x2'"),
        ("k=8x2.4x3 blocks=6", "has 5, the grid keeps 6"),
        ("k=8x999999999", "has 999999999"),
        ("k=8x0.4x16", "add up"),
        ("k=8x2,4x3x2 blocks=2", "'4x3x2'"),
        ("k=" + ",".join(map(str, range(1, 30))) + " blocks=8,10,12,14", f"at most {MOST_MEMBERS} .* gives 116"),
    ],
)
def test_grids_that_can_not_be(grid: str, words: str) -> None:
    with pytest.raises(KnobError, match=words):
        parse_grid(grid, 16)


@pytest.mark.parametrize(
    ("grid", "error", "words"),
    [
        ("k=2,2", KnobError, "k2-b4 occurs twice"),
        ("k=2,2x4", KnobError, "k2-b4 occurs twice"),
        ("k=9", KnobError, "from 1 to 8"),
        ("blocks=3", ScoresError, "scores"),
    ],
)
def test_members_that_can_not_be(molmo: Path, grid: str, error: type[KnobcastError], words: str) -> None:
    with pytest.raises(error, match=words):
        plan_family(read_checkpoint(molmo), grid)


def test_scores_that_choose_nothing_are_refused(molmo: Path, scores: str) -> None:
    with pytest.raises(KnobError, match="keeps all"):
        plan_family(read_checkpoint(molmo), "k=1,2", scores=scores)


def test_a_family_holds_the_weights_once_and_a_graph_per_member(made: Path, molmo: Path) -> None:
    weights = made / "model.safetensors"
    assert filecmp.cmp(weights, molmo / "model.safetensors", shallow=False)
    assert {p.name for p in made.glob("*.safetensors")} == {"model.safetensors", "golden.safetensors"}
    graphs = {f"text-{name}.onnx" for name in NAMES}
    assert {p.name for p in made.glob("*.onnx")} == {
        "preprocess.onnx",
        "vision.onnx",
        "embedding.onnx",
        "text.onnx",
    } | graphs
    for graph in graphs:
        stored = list(external_tensors(onnx.load(made / graph, load_external_data=False).graph))
        assert {e.value for t in stored for e in t.external_data if e.key == "location"} == {weights.name}
    listed = (made / "SHA256SUMS").read_text()
    assert all(name in listed for name in (*graphs, "family.json"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "a family of schema 1"),
        ({"model": "../m"}, "with the name of its model"),
        ({"form": "gpu"}, "family.json: form must be one of"),
        ({"extras": ["A/B"]}, "must have names as k4-b12"),
        (
            {"vision": {"tokens": 1.5, "resize": "pad", "rule": "canvas"}},
            "vision: tokens must be a whole number, got 1.5",
        ),
        ({"members": []}, "different names"),
        ({"name": "k4"}, "must have names as k4-b12"),
        ({"graph": "text-k9-b9.onnx"}, r"members\[0\]: graph must be 'text-k2-b3.onnx', got text-k9"),
        ({"overlay": "x.json"}, r"members\[0\]: overlay must be"),
        ({"top_k": [2, 2]}, "one k per kept block"),
        ({"top_k": [True, 2, 2]}, r"members\[0\]: top_k\[0\] must be a whole number, got True"),
        ({"sha256": None}, "sha256 must be text"),
        ({"more": 1}, r"members\[0\] must be an object with the keys name, "),
    ],
)
def test_a_damaged_record_is_refused_by_the_field(made: Path, change: dict[str, object], said: str) -> None:
    record = read_json(made / "family.json")
    if change.keys() & record.keys():
        record |= change
    else:
        record["members"][0] |= change
        for name in ("graph", "overlay") if "name" in change else ():
            del record["members"][0][name]
    with pytest.raises(VerificationError, match=said):
        Family.parse(record)


def test_the_record_says_what_the_members_are_and_what_was_measured(made: Path) -> None:
    record = read_json(made / "family.json")
    assert Family.parse(record).as_dict() == record
    members = record["members"]
    assert [m["name"] for m in members] == NAMES
    assert [m["blocks_kept"] for m in members] == [[0, 2, 3], [0, 1, 2, 3], [0, 2, 3]]
    assert [m["top_k"] for m in members] == [[2] * 3, [2] * 4, [1, 1, 4]]
    for member in members:
        assert sha256_file(made / member["graph"]) == member["sha256"]
        found = member["verification"]
        assert 0 < found["onnx_vs_torch"]["prefill"] <= found["onnx_vs_torch"]["relative_tolerance"] * 5
        assert found["other_k"]["difference"] > 1e-3


def test_members_differ(made: Path) -> None:
    ids = np.arange(10)[None]
    found = []
    for name in NAMES:
        graphs = Graphs(made, text=f"text-{name}.onnx")
        found.append(graphs.step(ids, np.ones_like(ids), graphs.empty_cache(1))[0])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[a] - found[b]).max() > 1e-2


def merged(base: Any, overlay: Any) -> Any:
    """As onnxruntime-genai lays one configuration over another: objects key by key, all else replaced."""
    if not isinstance(base, Mapping) or not isinstance(overlay, Mapping):
        return overlay
    return {**base, **{key: merged(base.get(key), value) for key, value in overlay.items()}}


@pytest.mark.parametrize(("name", "verify"), [("k2-b3", False), ("k1x2.4x1-b3", True)])
def test_a_member_made_standalone_is_the_export_from_the_source(
    made: Path, molmo: Path, tmp_path: Path, name: str, verify: bool
) -> None:
    plan, default = plan_member(made, name)
    assert default == f"{molmo.name}-{name}-t288"
    manifest = export_variant(plan, tmp_path / "member", verify=verify)
    assert not verify or set(manifest["verification"]["static_vs_dynamic"].values()) == {0.0}
    k = 2 if name == "k2-b3" else (1, 1, 4)
    theirs = make_plan(read_checkpoint(molmo), Knobs(k, (0, 2, 3), 288))
    export_variant(theirs, tmp_path / "theirs", verify=verify)
    names = sorted(p.name for p in (tmp_path / "theirs").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "member").iterdir())
    for graph in (*(tmp_path / "theirs").glob("*.onnx"), *(tmp_path / "member").glob("*.onnx")):
        retell(graph, {}, keep=False)  # where they come from
    _, differing, _ = filecmp.cmpfiles(tmp_path / "theirs", tmp_path / "member", names, shallow=False)
    # its origin is the family: that, and what holds it, is all that may differ
    assert set(differing) <= {"manifest.json", "README.md", "SHA256SUMS"}

    overlaid = merged(read_json(made / "genai_config.json"), read_json(made / f"genai_config-{name}.json"))
    overlaid["model"]["decoder"]["filename"] = "text.onnx"
    assert overlaid == read_json(tmp_path / "theirs" / "genai_config.json")


def test_a_family_verifies_and_a_moved_one_too(made: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(made, tmp_path / "elsewhere"))
    assert list(verify_family(moved, lambda _: None)["members"]) == NAMES


@pytest.mark.parametrize("change", ["graph", "blocks_kept", "top_k"])
@pytest.mark.parametrize("careful", [False, True])
def test_a_changed_member_fails_verify(made: Path, tmp_path: Path, change: str, careful: bool) -> None:
    family = Path(shutil.copytree(made, tmp_path / "family"))
    if change == "graph":
        shutil.copyfile(family / "text-k1x2.4x1-b3.onnx", family / "text-k2-b3.onnx")
    else:
        record = read_json(family / "family.json")
        record["members"][0][change] = {"blocks_kept": [0, 1, 3], "top_k": [2, 2, 1]}[change]
        (family / "family.json").write_text(json.dumps(record))
    if careful:
        record_sums(family)
    with pytest.raises(VerificationError, match="k2-b3: prefill" if careful else "must have the digest"):
        verify_family(family, lambda _: None)


def test_a_digest_that_is_not_the_graphs_fails_verify(made: Path, tmp_path: Path) -> None:
    family = Path(shutil.copytree(made, tmp_path / "family"))
    record_sums(family, {"sha256": "0" * 64})
    with pytest.raises(VerificationError, match=r"text-k2-b3\.onnx must have the digest in family\.json"):
        verify_family(family, lambda _: None)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"model": "../elsewhere"},
        {"vision": {}},
        {"vision": {"tokens": [], "resize": "pad", "rule": "canvas"}},
        {"members": []},
        {"members": [{}]},
        {"name": "../k2-b3", "graph": "text-../k2-b3.onnx"},
        {"graph": "text.onnx"},
        {"graph": "../text-k2-b3.onnx"},
        {"top_k": [2, 2, True]},
        {"top_k": [2, 2]},
        {"blocks_kept": "0,2,3"},
        {"sha256": None},
        {"name": "k2-b4", "graph": "text-k2-b4.onnx"},
    ],
    ids=str,
)
def test_a_broken_record_is_refused(made: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    record = read_json(made / "family.json")
    (record if change.keys() & record.keys() else record["members"][0]).update(change)
    (tmp_path / "family.json").write_text(json.dumps(record))
    with pytest.raises(VerificationError, match="Export the family again"):
        plan_member(tmp_path, "k2-b3")


def test_a_wrong_graph_is_never_emitted(molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transform.top_k import set_top_k

    right = export.graph.decoder.text_graph
    monkeypatch.setattr(export.graph.decoder, "text_graph", lambda member, form: right(set_top_k(member, 3), form))
    with pytest.raises(VerificationError, match="member k2-b4: prefill"):
        write_family(molmo, tmp_path / "family", "k=2")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_left_alone(molmo: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(WriteError, match="--force"):
        write_family(molmo, tmp_path, "k=2")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_same_grid_gives_the_same_bytes(molmo: Path, tmp_path: Path) -> None:
    for name in "ab":
        write_family(molmo, tmp_path / name, "k=1,2", verify=False)
    names = [p.name for p in (tmp_path / "a").iterdir()]
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False)[0] == names


def test_a_family_can_be_stored_in_sixteen_bits(molmo: Path, tmp_path: Path) -> None:
    write_family(molmo, tmp_path / "family", "k=2x2.1x2", dtype="bfloat16", tokens=288)
    assert (tmp_path / "family" / "model.safetensors").stat().st_size < 0.6 * (
        molmo / "model.safetensors"
    ).stat().st_size
    verify_family(tmp_path / "family", lambda _: None)
    export_variant(plan_member(tmp_path / "family", "k2x2.1x2-b4")[0], tmp_path / "member", verify=False)
    export_variant(
        make_plan(read_checkpoint(molmo), Knobs((2, 2, 1, 1), None, 288, "bfloat16")), tmp_path / "v", verify=False
    )
    ours, theirs = (load_torch_file(tmp_path / name / "model.safetensors") for name in ("member", "v"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_text_model_has_families(olmoe: Path, tmp_path: Path) -> None:
    record = write_family(olmoe, tmp_path / "family", "k=1")
    assert record["vision"] is None
    assert [m["name"] for m in record["members"]] == ["k1-b6"]
    plan, _ = plan_member(tmp_path / "family", "k1-b6")
    assert plan.target.settings.top_k == (1,) * 6
    with pytest.raises(KnobError, match="one k for all blocks"):
        plan_family(read_checkpoint(olmoe), "k=1x3.2x3")


def test_the_command_line(molmo: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    out = tmp_path / "family"
    made = runner.invoke(app, ["export", str(molmo), "--family", "k=1", "--out", str(out), "--json"])
    assert made.exit_code == 0, made.stderr
    assert [m["name"] for m in json.loads(made.stdout)["members"]] == ["k1-b4"]
    checked = runner.invoke(app, ["verify", str(out), "--json"])
    assert list(json.loads(checked.stdout)["members"]) == ["k1-b4"]
    member = ["export", str(out), "--member", "k1-b4", "--no-verify", "--out", str(tmp_path / "v"), "--json"]
    assert json.loads(runner.invoke(app, member).stdout)["top_k"] == [1] * 4


def test_a_dry_run_writes_nothing(molmo: Path, tmp_path: Path) -> None:
    arguments = ["export", str(molmo), "--family", "k=1,2", "--tokens", "432", "--dry-run"]
    planned = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert planned["out"] == f"artifacts/{molmo.name}-family-t432"
    assert [m["top_k"] for m in planned["members"]] == [[1] * 4, [2] * 4]
    assert "k2-b4" in CliRunner().invoke(app, arguments).stdout
    assert not Path(planned["out"]).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--family", "k=2", "--k", "2"], "without --k"),
        (["--family", "k=2", "--blocks", "2", "--drop-blocks", "1"], "without --blocks, --drop-blocks"),
        (["--family", "k=2", "--no-onnx"], "without --no-onnx"),
        (["--family", "k=2", "--member", "k2-b4"], "without --member"),
        (["--member", "k2-b4", "--tokens", "432"], "without --tokens"),
        (["--member", "k2-b4", "--dtype", "float16", "--rule", "linear"], "without --rule, --dtype"),
        (["--member", "k2-b4"], "no family"),
    ],
)
def test_flags_that_exclude_each_other(molmo: Path, arguments: list[str], words: str) -> None:
    refused = CliRunner().invoke(app, ["export", str(molmo), *arguments])
    assert isinstance(refused.exception, KnobError)
    assert words in str(refused.exception)


def test_an_unknown_member_is_refused_with_the_known_ones(made: Path) -> None:
    with pytest.raises(KnobError, match=", ".join(NAMES).replace(".", r"\.")):
        plan_member(made, "k3-b3")
    refused = CliRunner().invoke(app, ["export", "--member", "k3-b3"])
    assert "Give its directory" in str(refused.exception)


@pytest.mark.extra
@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-genai: `make genai-env` creates it")
@pytest.mark.parametrize("name", ["k2-b3", "k1x2.4x1-b3"])
def test_an_overlay_switches_the_member_in_genai(made: Path, tmp_path: Path, name: str) -> None:
    ids = load_file(ROOT / "tests" / "fixtures" / "molmo" / "parity_inputs.safetensors")["text_only/input_ids"]
    save_file({"input_ids": ids}, tmp_path / "inputs.safetensors")
    export_variant(plan_member(made, name)[0], tmp_path / "member", verify=False)

    def generate(directory: Path, *overlay: str) -> list[int]:
        command = [
            str(PYTHON),
            "tests/programs/genai_generate.py",
            str(directory),
            str(tmp_path / "inputs.safetensors"),
            "12",
        ]
        done = subprocess.run([*command, *overlay], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    ours = generate(made, str(made / f"genai_config-{name}.json"))
    assert ours == generate(tmp_path / "member")
    assert ours != generate(made)


@pytest.mark.parametrize("form", ["cuda", "int4"])
def test_a_family_in_another_form(form: str, molmo: Path, scores: str, tmp_path: Path) -> None:
    """Its members are proven, one can be taken out, and that one is what an export of its own would be."""
    source = read_checkpoint(molmo)
    base, members = plan_family(source, GRID, Knobs(tokens=288, form=form), scores)
    record = export_family(base, members, tmp_path / "family")
    assert [entry["name"] for entry in record["members"]] == NAMES
    for entry in record["members"]:
        assert entry["verification"]["onnx_vs_torch"]["decode"] < 1e-4
    verify_family(tmp_path / "family", lambda _: None)
    plan, name = plan_member(tmp_path / "family", "k2-b3")
    assert plan.form.name == form
    assert name == f"molmo-k2-b3-t288-{form}"
    export_variant(plan, tmp_path / name)
    keep = next(entry["blocks_kept"] for entry in record["members"] if entry["name"] == "k2-b3")
    export_variant(make_plan(source, Knobs(2, tuple(keep), 288, form=form)), tmp_path / "direct")
    weights = "model.safetensors" if form == "cuda" else "model-int4.safetensors"
    ours, theirs = (load_file(tmp_path / directory / weights) for directory in (name, "direct"))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[tensor], theirs[tensor]) for tensor in ours)
    assert filecmp.cmp(tmp_path / name / "golden.safetensors", tmp_path / "direct" / "golden.safetensors", False)
