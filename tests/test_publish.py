"""`push` and `pull`: what is published, where to, and that it is whole or not there; on folders (`dir:`)."""

import json
import re
import shutil
from pathlib import Path

import pytest

from export.publish import oci
from export.publish.content import digest_in, read_content
from export.publish.directory import Directory
from export.publish.publisher import check_alias, plainly, receive, scrubbed
from export.publish.targets import SCHEMES, open_target
from export.publish.web import LONGEST_WAIT, PassingError, steadily
from tests.support.command import knobcast
from tests.support.families import write_family
from tests.support.published import names, variant
from tests.support.variants import record_sums
from transform.errors import PublishError, VerificationError


@pytest.fixture(scope="module")
def two(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Variants with k 1 and 2, and nothing else between them."""
    folder = tmp_path_factory.mktemp("variants")
    return variant(molmo, folder / "k1", 1), variant(molmo, folder / "k2", 2)


@pytest.fixture
def copy(two: tuple[Path, Path], tmp_path: Path) -> Path:
    """One of them, to be changed."""
    return Path(shutil.copytree(two[0], tmp_path / "copy"))


def test_a_version_goes_and_comes_back(two: tuple[Path, Path], tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    for directory in two:
        done = knobcast("push", directory, f"dir:{shelf}", "--alias", "edge-prod", "--json")
        assert done.code == 0, done.err
        record = json.loads(done.out)
        assert record["bytes_to_move"] == record["bytes"] == sum(len(data) for data in names(directory).values())
        assert record["reference"] == f"dir:{shelf / record['version']}"
    for reference, directory in (("edge-prod", two[1]), (read_content(two[0]).version, two[0])):
        out = tmp_path / reference
        pulled = knobcast("pull", f"dir:{shelf / reference}", out, "--json")
        assert (pulled.code, json.loads(pulled.out)["verification"]) == (0, "passed"), pulled.err
        assert names(out) == names(directory)
    again = json.loads(knobcast("push", two[0], f"dir:{shelf}", "--json").out)
    assert (again["bytes_to_move"], (shelf / "edge-prod").resolve().name) == (0, read_content(two[1]).version)
    assert knobcast("pull", f"dir:{shelf}/edge-prod", tmp_path / "edge-prod").said.startswith("error: ")
    assert knobcast("pull", f"dir:{shelf}/edge-prod", tmp_path / "edge-prod", "--force").code == 0


def test_variants_that_differ_in_k_share_their_weights(two: tuple[Path, Path]) -> None:
    """What no registry has to store twice: the names and bytes of weight files say nothing of k."""
    one, other = ({item.path: item.sha256 for item in read_content(directory).items} for directory in two)
    assert one["model.safetensors"] == other["model.safetensors"]
    assert {path for path in one if one[path] != other[path]} == {
        "README.md", "config.json", "io.json", "text.onnx", "SHA256SUMS", "manifest.json"
    }  # fmt: skip


def test_content_is_named_by_its_knobs_and_digest(two: tuple[Path, Path], molmo: Path, tmp_path: Path) -> None:
    content = read_content(two[0])
    assert content.version == f"k1-b4-{content.digest[:12]}"
    assert (content.name, content.tags["top_k"], content.tags["blocks_kept"]) == (molmo.name, "1,1,1,1", "0,1,2,3")
    assert [item.path for item in content.items[-2:]] == ["SHA256SUMS", "manifest.json"]
    assert content.items[0].path == "model.safetensors"
    write_family(molmo, tmp_path / "family", "k=1,2", verify=False)
    record_sums(tmp_path / "family")
    family = read_content(tmp_path / "family")
    assert (family.version.startswith("family-k4-b4-"), family.tags["kind"]) == (True, "family")


def test_a_dry_run_writes_nothing(two: tuple[Path, Path], tmp_path: Path) -> None:
    done = knobcast("push", two[0], f"dir:{tmp_path / 'shelf'}", "--dry-run", "--alias", "a", "--json")
    files = json.loads(done.out)["files"]
    assert (done.code, list(tmp_path.iterdir()), any(file["present"] for file in files)) == (0, [], False)
    assert f"would move {sum(file['bytes'] for file in files):,} of" in knobcast(
        "push", two[0], f"dir:{tmp_path / 'shelf'}", "--dry-run"
    ).out.replace("\n", " ")


def test_others_are_there_already_only_where_others_are(two: tuple[Path, Path], tmp_path: Path) -> None:
    said = [knobcast("push", directory, f"dir:{tmp_path / 'shelf'}").out for directory in (two[0], two[0], two[1])]
    assert ["the others are there already" in out for out in said] == [False, True, False]


def test_a_host_that_is_gone_is_named_once() -> None:
    def gone() -> None:
        raise PassingError("host:5000 can't be reached", after=LONGEST_WAIT + 1)

    for what, said in (("host:5000", "host:5000 can't"), ("an upload", "an upload: host:5000 can't")):
        with pytest.raises(PublishError, match=f"^{said}"):
            steadily(gone, what)


def test_ctrl_c_says_what_is_left(two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Directory, "confirm", interrupt)
    done = knobcast("push", two[0], f"dir:{tmp_path / 'shelf'}", "--alias", "edge")
    assert done.code == 130
    assert "interrupted; what arrived stays and isn't sent again, no alias was moved" in done.said
    monkeypatch.undo()
    assert json.loads(knobcast("push", two[0], f"dir:{tmp_path / 'shelf'}", "--json").out)["bytes_to_move"] == 0
    assert not (tmp_path / "shelf" / "edge").exists()


def test_what_is_no_variant_is_not_published(copy: Path, molmo: Path, tmp_path: Path) -> None:
    target = f"dir:{tmp_path / 'shelf'}"
    assert "so it is no variant" in knobcast("push", molmo, target).said
    (copy / "text.onnx").write_bytes(b"changed")
    assert "text.onnx must have the digest in SHA256SUMS" in knobcast("push", copy, target).said
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"pending": {"added": {}, "sha256sums": "x"}}))
    with pytest.raises(PublishError, match=r"derive is adding"):
        read_content(copy)
    (copy / "manifest.json").write_text(json.dumps(manifest | {"files": {"sha256sums": "not computed"}}))
    assert "exported with --no-verify" in knobcast("push", copy, target).said
    assert not (tmp_path / "shelf").exists()


@pytest.mark.parametrize(
    "target", ["nowhere://x/y", "C:\\models", "models", "oci", "://", "s3:", "s3://", "memory://", "memory:x", "dir:"]
)
def test_a_target_that_nobody_serves_is_refused(target: str) -> None:
    with pytest.raises(PublishError, match=r"Give one"):
        open_target(target)


def test_public_is_for_those_who_can_be_told() -> None:
    with pytest.raises(PublishError, match=r"--public .* Leave it out"):
        open_target("dir:x", public=True)


@pytest.mark.parametrize("alias", ["", "a b", "../x", "a..b", "x.lock", "-x", "é", "a" * 65, "k4-b12-0123456789ab"])
def test_an_alias_is_a_plain_name_and_no_version(alias: str) -> None:
    with pytest.raises(PublishError, match=r"Give one such as edge-prod"):
        check_alias(alias)
    check_alias("edge-prod_2.1")
    assert digest_in("family-k4-b12-t432-0123456789ab") == "0123456789ab"


def test_an_alias_stays_with_its_model(two: tuple[Path, Path], molmo: Path, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    assert knobcast("push", two[0], f"dir:{shelf}", "--alias", "edge").code == 0
    other = variant(Path(shutil.copytree(molmo, tmp_path / "another")), tmp_path / "variant")
    done = knobcast("push", other, f"dir:{shelf}", "--alias", "edge")
    assert "edge names a version of molmo, this is one of another." in done.said
    assert len(list(shelf.iterdir())) == 2, "nothing was pushed first"
    (shelf / "folder").mkdir()
    assert "is no alias" in knobcast("push", two[0], f"dir:{shelf}", "--alias", "folder").said


def test_a_version_that_was_changed_is_told(two: tuple[Path, Path], tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    version = shelf / read_content(two[0]).version
    assert knobcast("push", two[0], f"dir:{shelf}").code == 0
    (version / "config.json").write_text("{}")
    assert "config.json must have the SHA-256" in knobcast("push", two[0], f"dir:{shelf}").said
    assert "isn't whole: config.json" in knobcast("pull", f"dir:{version}", tmp_path / "out").said
    (version / "config.json").unlink()
    assert "must hold config.json" in knobcast("push", two[0], f"dir:{shelf}").said
    assert "lacks config.json" in knobcast("pull", f"dir:{version}", tmp_path / "out").said
    shutil.rmtree(version)
    shutil.copytree(two[1], version)
    assert "the version was overwritten" in knobcast("pull", f"dir:{version}", tmp_path / "out").said
    assert not (tmp_path / "out").exists()


def test_a_signature_travels_and_may_come_later(copy: Path, tmp_path: Path) -> None:
    """It is no part of the version: SHA256SUMS can't name it."""
    shelf = tmp_path / "shelf"
    assert knobcast("push", copy, f"dir:{shelf}", "--alias", "edge").code == 0
    for text in ("one", "another"):
        (copy / "model.sig").write_text(text)
        assert json.loads(knobcast("push", copy, f"dir:{shelf}", "--json").out)["bytes_to_move"] == len(text)
        assert knobcast("pull", f"dir:{shelf}/edge", tmp_path / text).code == 0
        assert names(tmp_path / text) == names(copy)
    assert [item.path for item in read_content(copy).items[-3:]] == ["SHA256SUMS", "model.sig", "manifest.json"]


def test_a_pull_names_its_own_words_for_a_place_that_is_taken(two: tuple[Path, Path], tmp_path: Path) -> None:
    pushed = knobcast("push", two[0], f"dir:{tmp_path}/shelf", "--json")
    done = knobcast("pull", json.loads(pushed.out)["reference"], two[1])
    assert done.code == 1
    assert "pass --force to replace it or choose another OUT." in " ".join(done.err.split())


def test_links_of_killed_runs_are_swept(two: tuple[Path, Path], tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    left, other = shelf / ".edge.999999999-0123abcd", shelf / ".edge.txt"
    left.symlink_to("nowhere")
    other.symlink_to("nowhere")
    assert knobcast("push", two[0], f"dir:{shelf}", "--alias", "edge").code == 0
    assert (left.is_symlink(), other.is_symlink()) == (False, True)


def test_an_address_that_none_can_have_is_refused(two: tuple[Path, Path]) -> None:
    done = knobcast("push", two[0], f"oci+http://{'a' * 80}.example/molmoe")
    assert "isn't the address of a registry" in done.said


def test_a_shelf_is_no_version(two: tuple[Path, Path], tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    assert knobcast("push", two[0], f"dir:{shelf}").code == 0
    assert f"Give one of its versions: {read_content(two[0]).version}." in knobcast("pull", f"dir:{shelf}", "x").said
    assert "is a variant, no folder" in knobcast("push", two[0], f"dir:{two[1]}").said
    assert "lies in the variant" in knobcast("push", two[0], f"dir:{two[0]}/shelf").said


def test_names_of_a_hostile_version_stay_inside(two: tuple[Path, Path], tmp_path: Path) -> None:
    version = Path(shutil.copytree(two[0], tmp_path / "shelf" / "version"))
    (tmp_path / "shelf" / "secret").write_text("x")
    with (version / "SHA256SUMS").open("a") as sums:
        sums.write("0" * 64 + "  ../secret\n")
    with pytest.raises(VerificationError, match=r"plain file names"):
        open_target(f"dir:{version}").fetch(f"dir:{version}", tmp_path / "stage", lambda _: None)


@pytest.mark.parametrize(
    "text",
    [
        "GET https://user:hunter2@host/v2/",
        "{'Authorization': 'Bearer hunter2'}",
        "Authorization: Basic hunter2==",
        "https://h/x?X-Amz-Signature=hunter2&a=b",
        "https://h/x?a=b&token=hunter2",
        "hf_hunter2hunter2",
        "header bearer hunter2hunter2",
    ],
)
def test_credentials_are_never_repeated(text: str) -> None:
    assert "hunter2" not in scrubbed(text)
    with pytest.raises(PublishError) as caught, plainly(f"a {text}", "Do something.", (ValueError,)):
        raise ValueError(text)
    assert "hunter2" not in str(caught.value)


def test_every_scheme_is_in_the_documentation_of_targets() -> None:
    with pytest.raises(PublishError) as caught:
        open_target("nothing")
    assert all(scheme.example in str(caught.value) for scheme in SCHEMES.values())


@pytest.mark.parametrize("path", ["a" * 256, "a" * 256 + "/b", "a.bin", "a.bin/b", "/".join(["a" * 200] * 30)])
def test_a_name_that_no_folder_can_have_is_told(path: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"first")
    with pytest.raises(PublishError, match="no file can have this name"):
        receive((b"second",), tmp_path / path, None, 100, lambda _: None)
    assert (tmp_path / "a.bin").read_bytes() == b"first"


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("user:hunter2@host/molmoe", r"must hold no login"),
        ("host", r"must be oci://HOST/REPOSITORY"),
        ("host/Upper", r"lower case"),
        ("host/a/../b", r"must be"),
        ("host/a:tag@sha256:12", r"must be"),
    ],
)
def test_a_reference_is_read_strictly(rest: str, message: str) -> None:
    with pytest.raises(PublishError, match=message) as caught:
        open_target(f"oci://{rest}")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "layer",
    [
        {"annotations": {"org.cncf.model.filepath": "../../etc/passwd"}},
        {"annotations": {"org.opencontainers.image.title": "/etc/passwd"}},
        {"annotations": {"org.cncf.model.filepath": ".hidden"}},
        {"annotations": {"org.cncf.model.filepath": "a"}, "size": -1},
        {"annotations": {"org.cncf.model.filepath": "a"}, "size": True},
        {"annotations": {"org.cncf.model.filepath": "a"}, "digest": "md5:0"},
        {"annotations": None},
        {},
        [],
    ],
    ids=str,
)
def test_what_others_wrote_writes_nothing_outside(layer: object) -> None:
    whole = {"digest": f"sha256:{'0' * 64}", "size": 1}
    layers = [whole | layer] if isinstance(layer, dict) else layer
    with pytest.raises(PublishError, match=re.escape(oci._OTHER)):
        list(oci._layers({"layers": layers}, "oci://h/r:t"))
