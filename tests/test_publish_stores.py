"""Object stores by fsspec: in memory, in files, and S3 as moto's server speaks it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export.publish import object_store
from export.publish.content import Content, read_content
from export.publish.publisher import pieces_of
from export.publish.targets import open_target
from tests.support.command import knobcast
from tests.support.paths import ROOT
from tests.support.published import names, push, variant
from tests.support.registry import free_port, wait_for
from transform.errors import KnobcastError, PublishError

MOTO = ROOT / ".venv-moto" / "bin" / "moto_server"


@pytest.fixture(scope="module")
def contents(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Content, Content]:
    """They differ in k alone."""
    made = tmp_path_factory.mktemp("variants")
    return read_content(variant(molmo, made / "k1", 1)), read_content(variant(molmo, made / "k2", 2))


@pytest.fixture(params=["memory", "file", pytest.param("s3", marks=pytest.mark.extra)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty prefix."""
    if request.param == "file":
        yield f"file://{tmp_path}/store"
    elif request.param == "memory":
        from fsspec.implementations.memory import MemoryFileSystem

        monkeypatch.setattr(MemoryFileSystem, "store", {})
        yield "memory://store/models"
    else:
        yield from s3(tmp_path, monkeypatch)


def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    program = os.environ.get("MOTO_SERVER") or str(MOTO)
    assert shutil.which(program), "moto's server isn't installed: make moto-env"
    port = free_port()
    with (tmp_path / "moto.log").open("w") as log:
        server = subprocess.Popen([program, "-p", str(port)], stdout=log, stderr=log)
        try:
            wait_for(port, server)
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
            monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
            import s3fs

            s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket", region_name="us-west-2")
            yield "s3://bucket/models"
        finally:
            server.terminate()
            server.wait()


def test_a_version_goes_and_comes_back(store: str, contents: tuple[Content, Content], tmp_path: Path) -> None:
    for content in contents:
        done = knobcast("push", content.directory, store, "--alias", "edge-prod", "--json")
        assert done.code == 0, done.err
        record = json.loads(done.out)
        assert record["reference"] == f"{store}/{content.version}"
        out = tmp_path / content.version
        for reference in (f"{store}/edge-prod", record["reference"]):
            pulled = knobcast("pull", reference, out, "--force")
            assert pulled.code == 0, pulled.err
            assert names(out) == names(content.directory)
    assert push(open_target(store), contents[0])[0] == 0
    versions = ", ".join(sorted(content.version for content in contents))
    assert f"Give one of its versions: {versions}." in knobcast("pull", store, tmp_path / "x").said
    assert "Check the URL." in knobcast("pull", f"{store}/nothing", tmp_path / "x").said


def test_a_signature_travels_and_may_come_later(store: str, contents: tuple[Content, Content], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(contents[0].directory, tmp_path / "copy"))
    push(open_target(store), contents[0], "edge")
    (copy / "model.sig").write_text("signed")
    assert push(open_target(store), read_content(copy))[0] == 6
    assert knobcast("pull", f"{store}/edge", tmp_path / "out").code == 0
    assert names(tmp_path / "out") == names(copy)


def test_what_another_version_has_is_copied_there(store: str, contents: tuple[Content, Content]) -> None:
    push(open_target(store), contents[0])
    planned = open_target(store).plan(contents[1])
    assert {item.path for item in planned.moving} == {
        "README.md", "config.json", "io.json", "text.onnx", "SHA256SUMS", "manifest.json"
    }  # fmt: skip
    assert push(open_target(store), contents[1])[0] == planned.bytes


def test_a_push_that_was_cut_goes_on(
    store: str, contents: tuple[Content, Content], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there and whole stays; what isn't is sent again; without its manifest a version isn't there."""
    content = contents[0]
    publisher: Any = open_target(store)
    real = publisher._send
    sent: list[str] = []

    def send(source: Path, target: str, item: Any, tick: Any) -> None:
        if len(sent) == 3:
            raise ConnectionError("the connection was cut")
        sent.append(item.path)
        real(source, target, item, tick)

    monkeypatch.setattr(publisher, "_send", send)
    with pytest.raises(PublishError, match=r"the connection was cut. Check the URL"):
        push(publisher, content, "edge")
    for reference in (content.version, "edge"):
        assert "is no version" in knobcast("pull", f"{store}/{reference}", tmp_path / "out").said
    damaged = sent[0]
    publisher._files.pipe_file(publisher._at(content.version, damaged), b"x" * content.items[0].size)
    again = open_target(store).plan(content)
    assert again.present == frozenset(sent[1:])
    push(open_target(store), content, "edge")
    assert knobcast("pull", f"{store}/edge", tmp_path / "out").code == 0


def test_a_file_that_fails_half_way_isnt_there(
    store: str, contents: tuple[Content, Content], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing a file of fsspec puts there what came so far, as if it were all."""
    if store.startswith("memory:"):
        return  # whose files are there from their first byte
    content = contents[0]
    publisher: Any = open_target(store)

    def cut(path: Path, tick: Any) -> Iterator[bytes]:
        for piece in pieces_of(path, tick):
            yield piece[: len(piece) // 2]
            raise OSError("a bad sector")

    with monkeypatch.context() as patch:
        patch.setattr(object_store, "pieces_of", cut)
        with pytest.raises(KnobcastError, match="a bad sector"):
            push(publisher, content)
    assert publisher._sizes(publisher._at(content.version)) == {}
    assert push(open_target(store), content)[0] == content.bytes


def test_what_the_store_holds_is_read_back(
    store: str, contents: tuple[Content, Content], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(open_target(store), contents[0], "edge")
    publisher: Any = open_target(store)
    real = publisher._send

    def send(source: Path, target: str, item: Any, tick: Any) -> None:
        real(source, target, item, tick)
        if item.path == "text.onnx":
            publisher._files.pipe_file(target, source.read_bytes()[::-1])

    monkeypatch.setattr(publisher, "_send", send)
    with pytest.raises(PublishError, match=r"text.onnx must have the SHA-256"):
        push(publisher, contents[1], "edge")
    assert "text.onnx must have the SHA-256" in knobcast("pull", f"{store}/{contents[1].version}", tmp_path / "x").said
    out = tmp_path / "old"
    assert knobcast("pull", f"{store}/edge", out).code == 0
    assert names(out) == names(contents[0].directory)
    push(open_target(store), contents[1], "edge")
    assert knobcast("pull", f"{store}/edge", out, "--force").code == 0
    assert names(out) == names(contents[1].directory)


def test_a_store_that_sends_more_than_it_lists_is_told(
    store: str, contents: tuple[Content, Content], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it could fill the disk."""
    _, receipt = push(open_target(store), contents[0])
    publisher: Any = open_target(receipt.reference)
    real = publisher._sizes
    monkeypatch.setattr(publisher, "_sizes", lambda folder: real(folder) | {"text.onnx": 1000})
    with pytest.raises(PublishError, match=r"text\.onnx must have at most 1,000 bytes"):
        publisher.fetch(receipt.reference, tmp_path, lambda _: None)


def test_what_went_away_behind_the_plan_is_named(
    contents: tuple[Content, Content], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(MemoryFileSystem, "store", {})
    content, target = contents[0], "memory://store/models"
    publisher = open_target(target)
    push(publisher, content)
    transfer = publisher.plan(content)
    MemoryFileSystem().rm(f"/store/models/{content.version}/config.json")
    receipt = publisher.push(transfer, lambda _: None)
    with pytest.raises(PublishError, match=r"config\.json"):
        publisher.confirm(receipt, content)


def test_an_alias_stays_with_its_model(store: str, contents: tuple[Content, Content], tmp_path: Path) -> None:
    push(open_target(store), contents[0], "edge")
    publisher: Any = open_target(store)
    pointer = {"version": contents[0].version, "source": "another/model"}
    publisher._files.pipe_file(publisher._at("edge.json"), json.dumps(pointer).encode())
    with pytest.raises(PublishError, match=r"edge names a version of another/model"):
        open_target(store).plan(contents[1], "edge")
    for broken in (b"{", b"[]", b'{"version": "../x"}', b'{"version": ".."}', b'{"version": ""}'):
        publisher._files.pipe_file(publisher._at("edge.json"), broken)
        assert "is no alias" in knobcast("pull", f"{store}/edge", tmp_path / "x").said


def test_a_login_isnt_taken_from_an_url() -> None:
    with pytest.raises(PublishError, match=r"must hold no login") as caught:
        open_target("ftp://ann:hunter2@host/models")
    assert "hunter2" not in str(caught.value)


def test_a_client_that_isnt_installed_is_named() -> None:
    with pytest.raises(PublishError, match=r"isn't installed"):
        open_target("oss://bucket/models")
