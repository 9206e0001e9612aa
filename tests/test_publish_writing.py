"""What killed runs and broken disks must not leave where variants are published: files in part, tracebacks."""

import errno
import os
from pathlib import Path

import pytest

from export.publish.content import Content, read_content
from export.publish.publisher import publish
from export.publish.targets import open_target
from tests.support.published import names, push, variant
from transform import stage
from transform.errors import KnobcastError, WriteError
from transform.ownership import SIGNATURE

DEAD = 4194304  # above the largest number of a process


@pytest.fixture(scope="module")
def content(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Content:
    return read_content(variant(molmo, tmp_path_factory.mktemp("variants") / "k1", 1))


@pytest.mark.parametrize("part", ["manifest.json", "edge.json"])
def test_a_store_that_is_a_folder_shows_no_file_in_part(
    part: str, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends between two writes leaves what a failing write leaves, and no later step."""
    store = tmp_path / "store"
    last = store / content.version / "manifest.json" if part == "manifest.json" else store / part
    real = os.fsync

    def fsync(file: int) -> None:
        if f".{part}." in Path(f"/proc/self/fd/{file}").readlink().name:
            assert not last.exists(), "it has its name before it is whole"
            raise OSError(errno.EIO, "Input/output error")
        real(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(KnobcastError, match="Input/output error"):
            push(open_target(f"file://{store}"), content, "edge")
    assert not last.exists()
    push(open_target(f"file://{store}"), content, "edge")
    assert names(store / content.version) == names(content.directory)


def test_a_killed_copy_in_a_folder_is_swept(content: Content, tmp_path: Path) -> None:
    store = tmp_path / "store"
    push(open_target(f"file://{store}"), content, "edge")
    left = store / f".edge.json.{_host()}-{DEAD}-01234567.tmp"
    left.write_text("{")
    push(open_target(f"file://{store}"), content, "edge")
    assert not left.exists()


def test_a_folder_that_cant_be_synced_is_told_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stage.sync

    def sync(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        real(path)

    monkeypatch.setattr(stage, "sync", sync)
    told = pytest.raises(WriteError, match=r"has its name there.*Input/output error.*Check the disk")
    with told, stage.staged(tmp_path / "v", force=False) as place:
        (place / "manifest.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["v"], "it stands"


def test_a_version_that_another_push_wrote_meanwhile_is_there(content: Content, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    publisher = open_target(f"dir:{shelf}")
    transfer = publisher.plan(content)
    push(open_target(f"dir:{shelf}"), content)
    assert publish(publisher, transfer, lambda _: None, lambda _: None).digest == content.digest
    (shelf / content.version / "config.json").write_text("{}")
    with pytest.raises(WriteError, match="exists"):
        publisher.push(transfer, lambda _: None)


def test_a_signature_that_comes_later_appears_whole(
    content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "shelf"
    push(open_target(f"dir:{shelf}"), content)
    signed = content.directory / SIGNATURE
    signed.write_bytes(b"signature")
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", _full)
            with pytest.raises(WriteError, match="full"):
                push(open_target(f"dir:{shelf}"), read_content(content.directory))
        assert names(shelf / content.version).keys() == names(content.directory).keys() - {SIGNATURE}
        push(open_target(f"dir:{shelf}"), read_content(content.directory))
        assert names(shelf / content.version) == names(content.directory)
    finally:
        signed.unlink()


def _full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _host() -> str:
    from importance import atomic

    return atomic._host()
