"""`oci://` against Debian's docker-registry: what moves, what is shared, what comes back, what is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.publish import repository
from export.publish.content import Content, read_content
from export.publish.targets import open_target
from tests.support.command import knobcast
from tests.support.families import write_family
from tests.support.published import names, push, variant
from tests.support.registry import NEEDED, Registry, running
from tests.support.variants import record_sums

pytestmark = NEEDED


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with running(tmp_path / "registry") as found:
        yield found


@pytest.fixture(scope="module")
def folder(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Variants: two that differ in k, one with fewer blocks."""
    made = tmp_path_factory.mktemp("variants")
    variant(molmo, made / "k1", 1)
    variant(molmo, made / "k2", 2)
    variant(molmo, made / "b3", 2, [0, 2, 3])
    return made


def to(registry: Registry, name: str = "team/molmoe") -> str:
    return f"oci://localhost:{registry.port}/{name}"


def test_a_signature_stays_where_somebody_else_has_none(registry: Registry, folder: Path, tmp_path: Path) -> None:
    signed = Path(shutil.copytree(folder / "k1", tmp_path / "signed"))
    (signed / "model.sig").write_text("one")
    _, first = push(open_target(to(registry)), read_content(signed), "edge")
    moved, second = push(open_target(to(registry)), read_content(folder / "k1"), "edge")
    assert (moved, second) == (0, first)
    assert knobcast("pull", f"{to(registry)}:edge", tmp_path / "out").code == 0
    assert names(tmp_path / "out") == names(signed)


def test_a_version_goes_and_comes_back(registry: Registry, folder: Path, tmp_path: Path) -> None:
    for k in ("k1", "k2"):
        done = knobcast("push", folder / k, to(registry), "--alias", "edge-prod", "--json")
        assert done.code == 0, done.err
    record = json.loads(done.out)
    by_digest = f"{to(registry)}@{record['registry_digest']}"
    for n, reference in enumerate((f"{to(registry)}:edge-prod", record["reference"], by_digest)):
        out = tmp_path / str(n)
        assert knobcast("pull", reference, out).code == 0
        assert names(out) == names(folder / "k2")
    before = registry.stored, len(registry.requests("POST"))
    again = json.loads(knobcast("push", folder / "k2", to(registry), "--json").out)
    assert (again["bytes_to_move"], again["registry_digest"]) == (0, record["registry_digest"])
    assert (registry.stored, len(registry.requests("POST"))) == before


def test_a_signature_travels_and_may_come_later(registry: Registry, folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder / "k1", tmp_path / "copy"))
    push(open_target(to(registry)), read_content(copy), "edge")
    (copy / "model.sig").write_text("signed")
    moved, receipt = push(open_target(to(registry)), read_content(copy))
    assert moved == 6
    assert knobcast("pull", receipt.reference, tmp_path / "out").code == 0
    assert names(tmp_path / "out") == names(copy)


def test_what_differs_in_k_alone_sends_no_weights(registry: Registry, folder: Path) -> None:
    """Counted at the registry, in its storage."""
    one, other = read_content(folder / "k1"), read_content(folder / "k2")
    moved, _ = push(open_target(to(registry)), one)
    assert one.bytes == moved <= registry.stored
    before = registry.stored
    planned = open_target(to(registry)).plan(other)
    moved, _ = push(open_target(to(registry)), other)
    weights = next(item for item in other.items if item.path == "model.safetensors")
    assert weights.path in planned.present
    assert planned.bytes == moved == other.bytes - sum(i.size for i in other.items if i.path in planned.present)
    assert registry.stored - before < other.bytes - weights.size


def test_a_depth_variant_says_that_its_shards_move(registry: Registry, folder: Path) -> None:
    push(open_target(to(registry)), read_content(folder / "k2"))
    planned = open_target(to(registry)).plan(read_content(folder / "b3"))
    assert "model.safetensors" in {item.path for item in planned.moving}
    assert planned.bytes > 0.5 * planned.content.bytes


def test_repositories_beside_each_other_share_blobs(registry: Registry, folder: Path) -> None:
    push(open_target(to(registry, "team/one")), read_content(folder / "k1"))
    before = registry.stored
    publisher = open_target(to(registry, "team/two"))
    content = read_content(folder / "k2")
    moved, _ = push(publisher, content)
    assert moved < 0.2 * content.bytes
    assert registry.stored - before < 0.2 * content.bytes
    assert "model.safetensors" not in open_target(to(registry, "others/three")).plan(content).present


def test_a_family_with_one_more_member_moves_graphs_alone(registry: Registry, molmo: Path, tmp_path: Path) -> None:
    contents: list[Content] = []
    for grid in ("k=1,2", "k=1,2,3"):
        write_family(molmo, tmp_path / grid, grid, verify=False)
        record_sums(tmp_path / grid)
        contents.append(read_content(tmp_path / grid))
    push(open_target(to(registry)), contents[0])
    moving = {item.path for item in open_target(to(registry)).plan(contents[1]).moving}
    assert moving == {
        "README.md", "family.json", "text-k3-b4.onnx", "genai_config-k3-b4.json", "SHA256SUMS", "manifest.json"
    }  # fmt: skip


def test_the_artifact_is_a_model_pack(registry: Registry, folder: Path) -> None:
    content = read_content(folder / "k1")
    _, receipt = push(open_target(to(registry)), content)
    found = repository.Repository(f"http://localhost:{registry.port}", "team/molmoe").manifest(content.version)
    assert found is not None
    assert repository.digest_of_bytes(found[0]) == receipt.digest
    manifest = found[1]
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    kinds = {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]}
    assert list(kinds) == [item.path for item in content.items]
    assert kinds["model.safetensors"] == kinds["text.onnx"] == "application/vnd.cncf.model.weight.v1.raw"
    assert kinds["config.json"] == "application/vnd.cncf.model.weight.config.v1.raw"
    assert kinds["README.md"] == "application/vnd.cncf.model.doc.v1.raw"
    assert kinds["tiling.py"] == "application/vnd.cncf.model.code.v1.raw"


def test_large_files_go_in_chunks(registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "CHUNK", 500_000)
    content = read_content(folder / "k1")
    moved, _ = push(open_target(to(registry)), content)
    assert moved == content.bytes
    sizes = -(-2_227_040 // 500_000)
    assert len(registry.requests("PATCH")) == sizes


def test_an_alias_stays_with_its_model(registry: Registry, folder: Path, molmo: Path, tmp_path: Path) -> None:
    push(open_target(to(registry)), read_content(folder / "k1"), "edge")
    other = variant(Path(shutil.copytree(molmo, tmp_path / "another")), tmp_path / "variant")
    done = knobcast("push", other, to(registry), "--alias", "edge")
    assert "edge names a version of molmo, this is one of another." in done.said
    assert len(registry.requests("POST")) == len(registry.requests("PUT")) - 2, "nothing was pushed first"


def test_what_isnt_there_is_told_with_what_is(registry: Registry, folder: Path, tmp_path: Path) -> None:
    _, receipt = push(open_target(to(registry)), read_content(folder / "k1"))
    version = receipt.reference.rpartition(":")[2]
    for reference in (to(registry), f"{to(registry)}:nothing"):
        assert f"Give one of: {version}." in knobcast("pull", reference, tmp_path / "out").said
    assert "Check the reference." in knobcast("pull", f"{to(registry, 'no/such')}:x", tmp_path / "out").said
    assert "Give --alias instead" in knobcast("push", folder / "k1", f"{to(registry)}:mine").said
    assert not (tmp_path / "out").exists()
