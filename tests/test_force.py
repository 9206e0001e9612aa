"""--force, and targets that take no name: what is replaced is knobcast's own, and the only copy is never swept."""

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.layout.write import plan_layout, write_layout
from export.variant import export_variant
from transform import stage
from transform.errors import WriteError
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.stage import check_target, staged


def export(source: Path, out: Path, k: int = 2, **options: Any) -> None:
    plan = make_plan(read_checkpoint(source), Knobs(k=k))
    export_variant(plan, out, **{"verify": False, "onnx": False, "force": True, **options})


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture
def variant(molmo: Path, tmp_path: Path) -> Path:
    export(molmo, tmp_path / "v")
    return tmp_path / "v"


MANIFESTS = {
    "empty": {},
    "a web app's": {"name": "app", "icons": [], "start_url": "/"},
    "a browser extension's": {"manifest_version": 3, "name": "x", "version": "1", "files": {"names": ["mine"]}},
    "another schema": {"schema": 2, "blocks_kept": [0], "files": {"sha256sums": "not computed", "names": ["mine"]}},
    "no blocks": {"schema": 1, "files": {"sha256sums": "not computed", "names": ["mine"]}},
    "a list": [1],
    "no names": {"schema": 1, "blocks_kept": [0], "files": {"sha256sums": "not computed"}},
    "no sums": {"schema": 1, "blocks_kept": [0], "files": {"sha256sums": "0" * 64}},
    "others' names": {"schema": 1, "blocks_kept": [0], "files": {"sha256sums": "not computed", "names": ["x.json"]}},
}  # fmt: skip


@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS)
def test_any_other_directory_with_a_manifest_stays(molmo: Path, tmp_path: Path, manifest: Any) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("keep")
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest))
    before = snapshot(tmp_path)
    with pytest.raises(WriteError, match="--force replaces"):
        export(molmo, tmp_path / "d")
    assert snapshot(tmp_path) == before


def add_file(directory: Path) -> str:
    (directory / "notes.txt").write_text("mine")
    return r"also holds notes\.txt"


def add_graph(directory: Path) -> str:
    (directory / "my.onnx").write_text("mine")
    return r"my\.onnx"


def add_folder(directory: Path) -> str:
    (directory / "runs" / "1").mkdir(parents=True)
    (directory / "runs" / "1" / "log").write_text("mine")
    return "runs/1/log"


def add_link(directory: Path) -> str:
    (directory / "data").symlink_to("/nowhere")
    return "holds data"


def add_repository(directory: Path) -> str:
    (directory / ".git" / "objects").mkdir(parents=True)
    (directory / ".git" / "HEAD").write_text("ref: refs/heads/main")
    return r"\.git/HEAD"


def add_secret(directory: Path) -> str:
    (directory / ".env").write_text("mine")
    return r"\.env"


def add_many(directory: Path) -> str:
    for n in range(9):
        (directory / f"x{n}").write_text("mine")
    return "x4 and 4 more"


@pytest.mark.parametrize("add", [add_file, add_graph, add_folder, add_link, add_repository, add_secret, add_many])
@pytest.mark.parametrize("verified", [True, False])
def test_foreign_files_in_a_variant_are_named_and_stay(
    molmo: Path, variant: Path, add: Callable[[Path], str], verified: bool
) -> None:
    if verified:  # as far as a record goes
        manifest = json.loads((variant / "manifest.json").read_text())
        names = manifest["files"].pop("names")
        manifest["files"]["sha256sums"] = "0" * 64
        (variant / "manifest.json").write_text(json.dumps(manifest))
        (variant / "SHA256SUMS").write_text("".join(f"{'0' * 64}  {name}\n" for name in names))
    words = add(variant)
    before = snapshot(variant.parent)
    with pytest.raises(WriteError, match=words):
        export(molmo, variant, k=1)
    assert snapshot(variant.parent) == before


def test_a_variant_with_systems_traces_is_replaced_and_they_stay(molmo: Path, variant: Path) -> None:
    traces = [".DS_Store", "._model.safetensors", "Thumbs.db", "desktop.ini", ".gitattributes", ".nfs0001"]
    for name in traces:
        (variant / name).write_text("a system's")
    for name in ("__pycache__/x.pyc", ".cache/huggingface/x.metadata"):
        (variant / name).parent.mkdir(parents=True)
        (variant / name).write_text("a cache")
    (variant / ".text-k1-b2.onnx.stage-999999999").write_text("of a derive that was killed")
    (variant / "config.json").write_text("edited")  # ours to replace all the same
    export(molmo, variant, k=1)
    assert json.loads((variant / "config.json").read_text())["moe_top_k"] == 1
    assert {p.name for p in variant.iterdir() if p.name.startswith((".", "T", "d"))} == set(traces)
    assert [p.name for p in variant.parent.iterdir()] == ["v"]


def test_layouts_are_replaced_by_the_same_rule(molmo: Path, tmp_path: Path) -> None:
    export(molmo, tmp_path / "v", onnx=True)
    made = plan_layout(tmp_path / "v", "triton")
    for _ in range(2):
        write_layout(made, tmp_path / "layout", force=True)
    (tmp_path / "layout" / "text" / "2").mkdir()
    (tmp_path / "layout" / "text" / "2" / "model.onnx").write_text("the user's next version")
    with pytest.raises(WriteError, match="text/2/model"):
        write_layout(made, tmp_path / "layout", force=True)
    assert (tmp_path / "layout" / "text" / "2" / "model.onnx").read_text() == "the user's next version"


# Where two names can't be swapped in one step


class Killed(BaseException):
    """In place of a signal."""


@pytest.fixture
def no_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without renameat2."""
    monkeypatch.setattr("transform.stage.ctypes.CDLL", lambda *_, **__: object())


def kill_at(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """Before the nth rename of the exchange; nothing is cleaned up after it."""
    rename, calls = Path.rename, iter(range(1, 100))

    def counted(self: Path, target: Path) -> Path:
        if next(calls) == nth:
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", counted)
    monkeypatch.setattr("transform.stage.shutil.rmtree", lambda *_, **__: None)
    monkeypatch.setattr(stage, "alive", lambda _: False)


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
@pytest.mark.parametrize("then", ["export", "force"])
def test_the_only_copy_is_never_swept(
    molmo: Path, variant: Path, no_swap: None, monkeypatch: pytest.MonkeyPatch, nth: int, then: str
) -> None:
    old = snapshot(variant)
    with monkeypatch.context() as patch:
        kill_at(patch, nth)
        with pytest.raises(Killed):
            export(molmo, variant, k=1)
    monkeypatch.setattr(stage, "alive", lambda _: False)  # this process stands for another
    copies = [snapshot(p) for p in variant.parent.iterdir() if snapshot(p).keys() == old.keys()]
    assert old in copies or variant.is_dir()
    if then == "force":
        export(molmo, variant, k=3)
        assert json.loads((variant / "config.json").read_text())["moe_top_k"] == 3
    else:
        with pytest.raises(WriteError, match="exists"):
            export(molmo, variant, k=3, force=False)
        assert snapshot(variant) == old or json.loads((variant / "config.json").read_text())["moe_top_k"] == 1
        assert variant.is_dir()
    assert [p.name for p in variant.parent.iterdir()] == ["v"] or then != "force"


def test_an_exchange_that_fails_leaves_the_old(
    molmo: Path, variant: Path, no_swap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, rename = snapshot(variant), Path.rename

    def refused(self: Path, target: Path) -> Path:
        if ".stage-" in self.name and not any(p.name == "v" for p in self.parent.iterdir()):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(WriteError, match="Input/output"):
        export(molmo, variant, k=1)
    assert snapshot(variant) == old
    assert [p.name for p in variant.parent.iterdir()] == ["v"]


# Targets and file systems


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WriteError, match=r"is a mount point.* below it"):
        check_target(Path("/proc"), force=True)
    bound = tmp_path / "a b"  # a folder of the same file system: its device number tells nothing
    bound.mkdir()
    table = tmp_path / "mountinfo"
    table.write_text(f"36 35 8:1 /data {str(bound).replace(' ', chr(92) + '040')} rw - ext4 /dev/vda rw\n")
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(table if str(self).startswith("/proc/self") else self))
    with pytest.raises(WriteError, match=r"is a mount point.* below it"):
        check_target(bound, force=False)


def test_a_real_bind_mount_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "out").mkdir()
    mounted = subprocess.run(["mount", "--bind", str(tmp_path / "data"), str(tmp_path / "out")], capture_output=True)
    if mounted.returncode:
        return  # only the superuser may mount; the test above reads a table instead
    try:
        with pytest.raises(WriteError, match="is a mount point"):
            check_target(tmp_path / "out", force=False)
    finally:
        subprocess.run(["umount", str(tmp_path / "out")], check=True)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_shares_that_sync_no_directories_are_good_targets(
    molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_sync(monkeypatch, number, directories=True)
    export(molmo, tmp_path / "v")
    assert (tmp_path / "v" / "manifest.json").is_file()


@pytest.mark.parametrize(("number", "directories"), [(errno.EIO, True), (errno.EIO, False), (errno.EINVAL, False)])
def test_any_other_failed_sync_is_an_error(
    molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, directories: bool
) -> None:
    refuse_sync(monkeypatch, number, directories)
    with pytest.raises(WriteError, match=os.strerror(number)):
        export(molmo, tmp_path / "v")
    assert list(tmp_path.iterdir()) == []


def refuse_sync(monkeypatch: pytest.MonkeyPatch, number: int, directories: bool) -> None:
    sync = os.fsync

    def refused(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").is_dir() == directories:
            raise OSError(number, os.strerror(number))
        sync(handle)

    monkeypatch.setattr(os, "fsync", refused)


def test_every_folder_of_a_stage_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())))
    with staged(tmp_path / "v", force=False) as place:
        (place / "a" / "b").mkdir(parents=True)
        (place / "a" / "b" / "c").write_text("c")
    names = [Path(name).name for name in synced]
    assert names[:3] == ["c", "b", "a"]
    assert names[3].startswith(".v.stage") and Path(synced[4]) == tmp_path


def test_a_full_disk_says_how_much_and_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(WriteError, match=r"full: 1,000 bytes of it were written, [\d,]+ are free; .*Free space or"),
        staged(tmp_path / "v", force=False) as place,
    ):
        (place / "a").mkdir()
        (place / "a" / "b").write_bytes(b"0" * 1000)
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_parent_of_an_empty_folder_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "v").mkdir()
    mkdir = Path.mkdir

    def refused(self: Path, *args: Any, **options: Any) -> None:
        if ".stage-" in self.name:
            raise PermissionError(errno.EACCES, "Permission denied")
        mkdir(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(WriteError, match=f"new name below {tmp_path / 'v'}"), staged(tmp_path / "v", force=False):
        pass
