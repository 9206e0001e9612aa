"""A verified variant stays one: while derive adds to it, when derive is killed, as a hub's snapshot, with traces."""

import errno
import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.derive import derive, record
from export.files.integrity import check_graph_bounds, check_sums, unreplaced, write_sums
from export.gate.verify import verify_directory
from export.variant import export_variant, prove, seal, write
from transform import stage
from transform.errors import KnobcastError, VerificationError, WriteError
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint

NEW = "text-k1-b6.onnx"


@pytest.fixture(scope="module")
def verified(olmoe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verified") / "v"
    export_variant(make_plan(read_checkpoint(olmoe), Knobs(k=2)), out)
    return out


@pytest.fixture
def variant(verified: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(verified, tmp_path / "v"))


def names(directory: Path) -> set[str]:
    return {p.name for p in directory.iterdir()}


# Killed


class Killed(BaseException):
    """In place of a signal."""


def kill_derive(monkeypatch: pytest.MonkeyPatch, graph: Path, nth: int, **options: Any) -> bool:
    """Before its nth rename, removal or sync of a directory; nothing is cleaned up. False: it has fewer."""
    replace, unlink, sync, left = Path.replace, Path.unlink, stage.sync, [nth]

    def due() -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise Killed

    def replaced(self: Path, target: Path) -> Path:
        due()
        return replace(self, target)

    def unlinked(self: Path, missing_ok: bool = False) -> None:
        if ".stage-" in self.name and not self.exists():
            return
        due()
        unlink(self, missing_ok)

    def synced(path: Path) -> None:
        due()
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replaced)
        patch.setattr(Path, "unlink", unlinked)
        patch.setattr(record, "sync", synced)
        patch.setattr("export.derive.record.os.getpid", lambda: 999_999_999)  # afterwards there is no such process
        patch.setattr(record, "alive", lambda _: True)
        try:
            derive(graph, 1, **options)
        except Killed:
            return True
    return False


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derived graphs pass at once: here it is about files."""
    proven = {"run": "run", "masked": {"prefill": 0.0}, "torch": {"prefill": 0.0}}
    monkeypatch.setattr("export.derive.check.check_derived", lambda *_: dict(proven))
    monkeypatch.setattr("export.derive.check.is_proven", lambda _: True)


@pytest.mark.parametrize(("before", "then"), [("absent", "same"), ("absent", "other"), ("there", "other")])
def test_derive_killed_anywhere_leaves_a_variant_and_a_rerun_completes_it(
    verified: Path, tmp_path: Path, light: None, monkeypatch: pytest.MonkeyPatch, then: str, before: str
) -> None:
    killed, nth = 0, 1
    while True:
        variant = Path(shutil.copytree(verified, tmp_path / f"v{nth}"))
        force = before == "there"
        if force:
            derive(variant / "text.onnx", 1)
            assert (variant / NEW).is_file()
        if not kill_derive(monkeypatch, variant / "text.onnx", nth, force=force):
            break
        check_sums(variant)
        check_graph_bounds(variant)
        was = json.loads((variant / "manifest.json").read_text())
        complete = NEW in was.get("derived", {}) and "pending" not in was  # killed in its last step
        made = derive(variant / "text.onnx", 1 if then == "same" else 3, force=complete)
        check_sums(variant)
        manifest = json.loads((variant / "manifest.json").read_text())
        assert "pending" not in manifest and made["graph"] in manifest["derived"]
        assert set(manifest["derived"]) == names(variant) & {NEW, "text-k3-b6.onnx"}
        assert not [name for name in names(variant) if name.startswith(".")]
        killed += 1
        nth += 1 if then == "same" else 3
    assert killed > (10 if then == "same" else 4)


def test_an_unfinished_run_is_not_taken_for_another(variant: Path, light: None) -> None:
    derive(variant / "text.onnx", 1)
    with pytest.raises(WriteError, match="exists"):
        derive(variant / "text.onnx", 1)
    manifest = json.loads((variant / "manifest.json").read_text())
    (variant / "manifest.json").write_text(json.dumps(manifest | {"pending": {"added": {"io.json": "0" * 64}}}))
    with pytest.raises(VerificationError, match=r"io\.json|digest"):
        (variant / "io.json").write_text("{}")
        check_sums(variant)


def test_what_is_announced_must_have_its_sum(variant: Path) -> None:
    manifest = json.loads((variant / "manifest.json").read_text())
    pending = {"added": {"x.onnx": "0" * 64}, "sha256sums": "1" * 64}
    (variant / "manifest.json").write_text(json.dumps(manifest | {"pending": pending}))
    check_sums(variant)
    (variant / "x.onnx").write_text("another")
    with pytest.raises(VerificationError, match=r"x\.onnx must have the digest"):
        check_sums(variant)


def test_verify_beside_derive_passes(variant: Path, light: None) -> None:
    done, errors = threading.Event(), []

    def verify() -> None:
        while not done.is_set():
            try:
                check_sums(variant)
                check_graph_bounds(variant)
            except KnobcastError as error:
                errors.append(str(error))

    watch = threading.Thread(target=verify)
    watch.start()
    try:
        for k in (1, 3, 4, 1, 3):
            derive(variant / "text.onnx", k, force=True)
    finally:
        done.set()
        watch.join()
    assert errors == []


def test_stages_of_a_killed_derive_do_not_count(variant: Path) -> None:
    for name in (f".{NEW}.stage-77", f".{NEW}.stage-77.ours", ".manifest.json.stage-77", ".SHA256SUMS.stage-77"):
        (variant / name).write_text("left")
    check_sums(variant)
    check_graph_bounds(variant)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_directory_that_takes_nothing_is_refused(
    variant: Path, light: None, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = {p.name: p.read_bytes() for p in variant.iterdir()}

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, "refused")

    for name in ("write_bytes", "write_text", "replace", "unlink"):
        monkeypatch.setattr(Path, name, refused)
    with pytest.raises(WriteError, match=r"needed, [\d,]+ are free" if number in (28, 122) else "refused; nothing was"):
        derive(variant / "text.onnx", 1)
    assert {p.name: p.read_bytes() for p in variant.iterdir()} == before


@pytest.mark.parametrize("suffix", [r"[0-9]", ".ours", ".theirs"])
def test_a_disk_that_fills_up_during_the_check_is_said(
    variant: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Graphs that the check opens are written beside their weights too."""
    before, write = {p.name for p in variant.iterdir()}, Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if re.search(rf"stage-[0-9]*{suffix}$", self.name):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match=r"bytes are needed, [\d,]+ are free"):
        derive(variant / "text.onnx", 1)
    assert {p.name for p in variant.iterdir()} == before


# Replaced meanwhile


def test_a_variant_that_is_replaced_meanwhile_is_not_called_changed(verified: Path, tmp_path: Path) -> None:
    variant = Path(shutil.copytree(verified, tmp_path / "v"))

    def swap() -> None:
        variant.rename(tmp_path / "old")
        shutil.copytree(verified, variant)

    with pytest.raises(VerificationError, match="was replaced by another run"), unreplaced(variant):
        swap()
        raise VerificationError("text.onnx must have the digest")
    shutil.rmtree(tmp_path / "old")
    with pytest.raises(VerificationError, match="was replaced by another run"), unreplaced(variant):
        swap()
        raise FileNotFoundError("text.onnx")
    shutil.rmtree(tmp_path / "old")

    def say(step: str) -> None:
        if step == "as users load it":
            swap()

    with pytest.raises(VerificationError, match="was replaced by another run"):
        verify_directory(variant, say)


# Published


def test_a_snapshot_of_links_verifies(variant: Path, tmp_path: Path) -> None:
    """As the hub's cache has it: every file a link into a folder of blobs."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40)
    blobs = tmp_path / "models--owner--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for n, path in enumerate(sorted(variant.iterdir())):
        path.rename(blobs / f"{n:040}")
        (snapshot / path.name).symlink_to(f"../../blobs/{n:040}")
    found = verify_directory(snapshot, lambda _: None)
    assert found["onnx_vs_golden"]["logits"] < 1e-5
    with pytest.raises(WriteError, match=r"is a link\. .* cp -rL"):
        derive(snapshot / "text.onnx", 1)
    weights = next(snapshot.glob("model-*.safetensors")).resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(VerificationError, match="must have the digest"):
        verify_directory(snapshot, lambda _: None)


TRACES = (
    ".gitattributes", ".gitignore", ".DS_Store", "._model.safetensors", "._text.onnx", ".nfs0001", "Thumbs.db",
    "desktop.ini", ".cache/huggingface/x", ".git/HEAD", "__pycache__/x.pyc",
)  # fmt: skip


def add_traces(directory: Path) -> None:
    for name in TRACES:
        (directory / name).parent.mkdir(exist_ok=True, parents=True)
        (directory / name).write_text("not a graph")


def test_traces_of_systems_do_not_count(variant: Path) -> None:
    add_traces(variant)
    assert check_sums(variant) + 2 == sum(p.is_file() for p in variant.iterdir()) - 8
    check_graph_bounds(variant)
    for name, word in (("extra.py", r"extra\.py\. Remove"), ("more/x.json", "more/x")):
        (variant / name).parent.mkdir(exist_ok=True)
        (variant / name).write_text("x")
        with pytest.raises(VerificationError, match=word):
            check_sums(variant)
        (variant / name).unlink()


def test_traces_that_come_while_it_is_written_are_not_recorded(olmoe: Path, tmp_path: Path) -> None:
    plan = make_plan(read_checkpoint(olmoe), Knobs(k=2))
    with stage.staged(tmp_path / "v", False) as folder:
        written = write(plan, folder)
        add_traces(folder)
        seal(plan, written, prove(plan, written))
    assert not [name for name in TRACES if name in (tmp_path / "v" / "SHA256SUMS").read_text()]
    check_sums(tmp_path / "v")


def twice(text: bytes) -> bytes:
    return b"0" * 64 + text[64 : text.index(b"\n") + 1] + text


def bad_byte(text: bytes) -> bytes:
    return text + b"\xff"


def bad_line(text: bytes) -> bytes:
    return text + b"x\n"


def escape(text: bytes) -> bytes:
    return text + b"0" * 64 + b"  ../x\n"


def absolute(text: bytes) -> bytes:
    return text + b"0" * 64 + b"  /etc/passwd\n"


def hidden(text: bytes) -> bytes:
    return text + b"0" * 64 + b"  a/.x\n"


def nothing(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [bad_byte, bad_line, escape, absolute, hidden, nothing, twice])
def test_sums_that_are_none_are_refused(variant: Path, light: None, damage: Callable[[bytes], bytes]) -> None:
    from hashlib import sha256

    data = damage((variant / "SHA256SUMS").read_bytes())
    (variant / "SHA256SUMS").write_bytes(data)
    manifest = json.loads((variant / "manifest.json").read_text())
    manifest["files"]["sha256sums"] = sha256(data).hexdigest()
    (variant / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VerificationError):
        check_sums(variant)
    if damage is not nothing:
        with pytest.raises(VerificationError, match="SHA256SUMS"):
            derive(variant / "text.onnx", 1)


@pytest.mark.parametrize("target", ["/dev/zero", "/nowhere", "/", "fifo"])
def test_a_name_that_leads_to_no_file_is_refused(variant: Path, target: str) -> None:
    import os

    (variant / "io.json").unlink()
    if target == "fifo":
        os.mkfifo(variant / "io.json")
    else:
        (variant / "io.json").symlink_to(target)
    with pytest.raises(VerificationError, match=r"io\.json"):
        check_sums(variant)


def test_files_in_folders_are_recorded_too(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("c")
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"sha256sums": write_sums(tmp_path)}}))
    assert check_sums(tmp_path) == 1
    (tmp_path / "a" / "b" / "c").write_text("d")
    with pytest.raises(VerificationError, match="a/b/c"):
        check_sums(tmp_path)
