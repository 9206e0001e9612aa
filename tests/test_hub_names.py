"""Models of the hub: found in the cache by id and revision, and called by their names rather than by a commit."""

import json
import shutil
from pathlib import Path

import pytest

from export.variant import export_variant
from transform.errors import CheckpointError
from transform.hub_cache import hub_id, name_of, revision_of
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import resolve

MAIN, STEP, LOOSE = "a" * 40, "b" * 40, "c" * 40


@pytest.fixture
def cache(olmoe: Path, tmp_path: Path) -> Path:
    """A cache that holds a main branch, a training revision and a commit without a name."""
    repository = tmp_path / "models--owner--tiny-moe"
    for commit in (MAIN, STEP, LOOSE):
        shutil.copytree(olmoe, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(MAIN)
    (repository / "refs" / "step1000-tokens4B").write_text(STEP)
    return tmp_path


def snapshot(cache: Path, commit: str) -> Path:
    """The folder of one commit."""
    return cache / "models--owner--tiny-moe" / "snapshots" / commit


@pytest.mark.parametrize(
    ("commit", "name"), [(MAIN, "tiny-moe"), (STEP, "tiny-moe-step1000-tokens4B"), (LOOSE, "tiny-moe-cccccccc")]
)
def test_a_snapshot_is_called_after_its_model(cache: Path, commit: str, name: str) -> None:
    directory = snapshot(cache, commit)
    assert (hub_id(directory), revision_of(directory), name_of(directory)) == ("owner/tiny-moe", commit, name)
    plan = make_plan(read_checkpoint(directory), Knobs(2, (0, 2)))
    assert plan.name == f"{name}-k2-b2"
    assert plan.as_dict()["source"]["revision"] == commit


@pytest.mark.parametrize("name", ["model", "models--owner--tiny", "snapshots", "a" * 40])
def test_other_directories_keep_their_names(tmp_path: Path, name: str) -> None:
    assert (hub_id(tmp_path / name), revision_of(tmp_path / name), name_of(tmp_path / name)) == (None, None, name)


def test_manifest_and_card_say_the_model_and_its_revision(cache: Path, tmp_path: Path) -> None:
    plan = make_plan(read_checkpoint(snapshot(cache, STEP)), Knobs(2))
    export_variant(plan, tmp_path / "v", onnx=False, verify=False)
    source = json.loads((tmp_path / "v" / "manifest.json").read_text())["source"]
    assert (source["name"], source["revision"]) == ("owner/tiny-moe", STEP)
    card = (tmp_path / "v" / "README.md").read_text()
    assert "`owner/tiny-moe`" in card
    assert STEP in card


@pytest.mark.parametrize(("revision", "commit"), [(None, MAIN), ("step1000-tokens4B", STEP), (LOOSE, LOOSE)])
def test_a_revision_is_found_in_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None, commit: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve("owner/tiny-moe", revision) == snapshot(cache, commit)


def test_what_the_hub_does_not_have_is_named_with_its_revision(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"at revision 'step9'\. HF_HUB_OFFLINE is set.*unset it"):
        resolve("owner/tiny-moe", "step9")


@pytest.mark.parametrize("model", [None, "here"])
def test_a_directory_has_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str | None) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(CheckpointError, match="Leave --revision out"):
        resolve(model, "main")


@pytest.mark.parametrize("model", ["a" * 5000, "owner/" + "a" * 5000, "owner/name@step1", "a\0b", "owner/na me"])
def test_what_is_neither_a_directory_nor_an_id_is_refused(model: str) -> None:
    with pytest.raises(CheckpointError, match="not a hub id"):
        resolve(model)
