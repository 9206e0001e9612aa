"""Passes and writer: the right bytes under the right names, whole or not at all."""

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.paths import ROOT
from tests.support.variants import digests
from transform.checkpoint import Checkpoint
from transform.copying import RangeCopier
from transform.depth import drop_blocks
from transform.dtype import cast
from transform.errors import CheckpointError, KnobError, WriteError
from transform.read import read_checkpoint
from transform.stage import staged
from transform.top_k import set_top_k
from transform.write import coalesce, shards_of, write_checkpoint

OURS = {"schema": 1, "blocks_kept": [0], "files": {"sha256sums": "not computed", "names": []}}


def write(checkpoint: Checkpoint, target: Path) -> Checkpoint:
    with staged(target, force=False) as stage:
        write_checkpoint(checkpoint, stage)
    return read_checkpoint(target)


def arrays(directory: Path) -> dict[str, np.ndarray]:
    return {name: a for file in sorted(directory.glob("*.safetensors")) for name, a in load_file(file).items()}


@pytest.mark.parametrize("keep", [(0, 1, 3), (1, 2), (0, 2, 5), (3,)])
def test_dropped_blocks_leave_the_others_untouched(olmoe: Path, tmp_path: Path, keep: tuple[int, ...]) -> None:
    written = write(drop_blocks(read_checkpoint(olmoe), keep), tmp_path / "v")
    before, after = arrays(olmoe), arrays(tmp_path / "v")
    for name, array in after.items():
        old = name
        if name.startswith("model.layers."):
            index, rest = name.removeprefix("model.layers.").split(".", 1)
            old = f"model.layers.{keep[int(index)]}.{rest}"
        assert np.array_equal(array, before[old])
    assert written.settings.layers == len(keep)
    assert len(after) == len(written.expected())


def test_the_sources_setting_writes_the_sources_weight_bytes(molmo: Path, olmoe: Path, tmp_path: Path) -> None:
    for source in (molmo, olmoe):
        checkpoint = read_checkpoint(source)
        same = set_top_k(drop_blocks(checkpoint, range(checkpoint.settings.layers)), 2)
        write(same, tmp_path / source.name)
        before = {
            p.name: d
            for p, d in ((p, hashlib.sha256(p.read_bytes()).hexdigest()) for p in source.glob("model*.safetensors"))
        }
        after = {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / source.name).glob("*.safetensors")
        }
        assert sorted(before.values()) == sorted(after.values())


def test_neighbouring_tensors_move_as_one_range(molmo: Path) -> None:
    source = read_checkpoint(molmo)
    assert len(coalesce(shards_of(source)[0].tensors)) == 1
    assert len(coalesce(shards_of(drop_blocks(source, (0, 1, 3)))[0].tensors)) <= 4


def test_shards_that_lose_all_tensors_vanish_and_the_index_follows(olmoe: Path, tmp_path: Path) -> None:
    write(drop_blocks(read_checkpoint(olmoe), (0,)), tmp_path / "v")
    index = json.loads((tmp_path / "v" / "model.safetensors.index.json").read_text())
    files = {p.name for p in (tmp_path / "v").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays(tmp_path / "v").values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_casts_round_as_numpy_does(molmo: Path, tmp_path: Path, dtype: str) -> None:
    written = write(cast(read_checkpoint(molmo), dtype), tmp_path / "v")
    kind = np.dtype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    data = (tmp_path / "v" / "model.safetensors").read_bytes()
    for name, theirs in load_file(molmo / "model.safetensors").items():
        t = written.tensors[name]
        assert data[t.start : t.start + t.nbytes] == theirs.astype(kind).tobytes()


def test_a_cast_that_would_overflow_is_refused(molmo: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = load_file(molmo / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = 1e6
    (tmp_path / "big").mkdir()
    save_file(tensors, tmp_path / "big" / "model.safetensors")
    (tmp_path / "big" / "config.json").write_bytes((molmo / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"lm_head.*F16 can't hold 1e\+06"):
        write(cast(read_checkpoint(tmp_path / "big"), "float16"), tmp_path / "v")
    assert not (tmp_path / "v").exists()


def test_per_block_k_is_sliced_with_the_blocks(molmo: Path) -> None:
    source = set_top_k(read_checkpoint(molmo), (4, 3, 2, 1))
    assert drop_blocks(source, (0, 2, 3)).config["moe_top_k"] == [4, 2, 1]
    assert set_top_k(source, (2, 2, 2, 2)).config["moe_top_k"] == 2


def test_a_format_that_can_not_carry_per_block_k_refuses_it(olmoe: Path) -> None:
    with pytest.raises(KnobError, match="can't carry"):
        set_top_k(read_checkpoint(olmoe), (4, 4, 4, 4, 4, 2))


@pytest.mark.parametrize("k", [0, 9, (4, 4), (4, 4, 4, 0)])
def test_impossible_k_is_refused(molmo: Path, k: int | tuple[int, ...]) -> None:
    with pytest.raises(KnobError):
        set_top_k(read_checkpoint(molmo), k)


@pytest.mark.parametrize("keep", [(), (4,), (1, 0), (0, 0), (-1, 0)])
def test_impossible_blocks_are_refused(molmo: Path, keep: tuple[int, ...]) -> None:
    with pytest.raises(KnobError):
        drop_blocks(read_checkpoint(molmo), keep)


@pytest.mark.parametrize("ways", ["copy_file_range", "sendfile", "read_write"])
def test_every_way_of_copying_gives_the_same_bytes(tmp_path: Path, ways: str) -> None:
    data = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(data)
    with (tmp_path / "a").open("rb") as a, (tmp_path / "b").open("w+b") as b:
        copier = RangeCopier(a.fileno(), b.fileno(), lambda _: None)
        copier._ladder = [rung for rung in copier._ladder if rung[0] == ways]
        copier._reflink = False
        copier.copy(5, 11, 2_999_990)
        assert copier.ways == {ways: 2_999_990}
    assert (tmp_path / "b").read_bytes()[11:] == data[5:2_999_995]


REFUSALS = (
    errno.EIO, errno.EOVERFLOW, errno.EAGAIN, errno.EACCES, errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS,
    errno.EPERM, errno.ETXTBSY, errno.EBADF, errno.ENOMEM, errno.ESTALE, 0,
)  # fmt: skip


@pytest.mark.parametrize("ways", [("copy_file_range",), ("copy_file_range", "sendfile")])
@pytest.mark.parametrize("number", REFUSALS)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_way_that_fails_falls_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: tuple[str, ...], number: int, at_once: bool
) -> None:
    """At the first call or after some bytes, by an error or (0) by bytes that don't come."""
    for way in ways:
        monkeypatch.setattr(os, way, failing(getattr(os, way), number, after=0 if at_once else 1))
    data = os.urandom(100_000)
    (tmp_path / "a").write_bytes(data)
    monkeypatch.setattr("transform.copying._CHUNK", 40_000)
    with (tmp_path / "a").open("rb") as a, (tmp_path / "b").open("w+b") as b:
        copier = RangeCopier(a.fileno(), b.fileno(), lambda _: None)
        copier._reflink = False
        copier.copy(0, 0, 100_000)
        assert sum(copier.ways.values()) == 100_000
        assert at_once != any(way in copier.ways for way in ways)
    assert (tmp_path / "b").read_bytes() == data


def failing(call: Callable[..., int], number: int, after: int) -> Callable[..., int]:
    calls = iter(range(100))

    def failed(*args: object) -> int:
        if next(calls) < after:
            return call(*args)
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    return failed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_lack_of_space_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "copy_file_range", failing(lambda: 0, number, after=0))
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    with (tmp_path / "a").open("rb") as a, (tmp_path / "b").open("w+b") as b:
        copier = RangeCopier(a.fileno(), b.fileno(), lambda _: None)
        copier._reflink = False
        with pytest.raises(OSError, match=os.strerror(number)):
            copier.copy(0, 0, 100_000)


def test_a_clone_that_fails_falls_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transform.copying.fcntl.ioctl", failing(lambda: 0, errno.EIO, after=0))
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    with (tmp_path / "a").open("rb") as a, (tmp_path / "b").open("w+b") as b:
        RangeCopier(a.fileno(), b.fileno(), lambda _: None).copy(0, 0, 100_000)
    assert (tmp_path / "b").read_bytes() == b"x" * 100_000


def test_a_source_that_really_ends_early_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    with (tmp_path / "a").open("rb") as a, (tmp_path / "b").open("w+b") as b:
        copier = RangeCopier(a.fileno(), b.fileno(), lambda _: None)
        with pytest.raises(CheckpointError, match="ended 500 bytes early"):
            copier.copy(0, 0, 1500)


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), staged(tmp_path / "v", force=False) as stage:
        (stage / "x").write_text("x")
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "mine").write_text("mine")
    for force in (False, True):  # --force replaces variants only
        with pytest.raises(WriteError, match=r"exists|--force replaces"), staged(tmp_path / "v", force=force):
            pass
    assert (tmp_path / "v" / "mine").read_text() == "mine"


def test_force_replaces_a_variant_in_one_step(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with staged(tmp_path / "v", force=True) as stage:
            (stage / "manifest.json").write_text(json.dumps(OURS | {"text": text}))
    assert json.loads((tmp_path / "v" / "manifest.json").read_text())["text"] == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["v"]


def test_of_two_runs_at_once_the_second_loses_cleanly(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"exists|appeared"), staged(tmp_path / "v", force=False) as late:
        (late / "manifest.json").write_text("late")
        with staged(tmp_path / "v", force=False) as early:
            (early / "manifest.json").write_text("early")
    assert (tmp_path / "v" / "manifest.json").read_text() == "early"
    assert [p.name for p in tmp_path.iterdir()] == ["v"]


def test_a_killed_run_leaves_no_target_and_the_next_one_sweeps(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom transform.stage import staged\n"
        "with staged(Path(sys.argv[1]), force=False) as stage:\n"
        "    (stage / 'big').write_bytes(b'0' * 1000)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = tmp_path / "v"
    done = subprocess.run([sys.executable, "-c", script, str(target)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with staged(target, force=False) as stage:
        (stage / "x").write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["v"]


def test_modes_follow_the_umask(molmo: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(drop_blocks(read_checkpoint(molmo), (0, 3)), tmp_path / "v")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "v").iterdir()} == {0o640}


def test_a_full_disk_is_said_before_anything_is_written(
    molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("transform.write.shutil.disk_usage", lambda _: usage)
    with pytest.raises(WriteError, match="1,000 are free"):
        write(drop_blocks(read_checkpoint(molmo), (0, 3)), tmp_path / "v")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_casts_need_space_where_blocks_are_shared(
    olmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Their bytes are new; a source's own can be shared, by each file that lies on the same file system."""
    monkeypatch.setattr("transform.write.shutil.disk_usage", lambda _: type("usage", (), {"free": 1000}))
    planned = cast(drop_blocks(read_checkpoint(olmoe), (0, 3)), dtype)
    files = {tensor.file for tensor in planned.tensors.values()}
    assert len(files) > 1
    monkeypatch.setattr("transform.write.can_reflink", lambda *_: True)
    if dtype == "float32":
        write(planned, tmp_path / "shared")
        _, *others = dict.fromkeys(tensor.file for tensor in planned.tensors.values())
        last = max(others, key=lambda file: file.stat().st_size)
        monkeypatch.setattr("transform.write._shares_blocks", lambda source, _: source != last)
    with pytest.raises(WriteError, match="1,000 are free"):
        write(planned, tmp_path / "v")
    assert not (tmp_path / "v").exists()


def test_the_same_input_gives_the_same_bytes(olmoe: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(set_top_k(drop_blocks(read_checkpoint(olmoe), (0, 2, 5)), 2), tmp_path / name)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_an_upgrade_of_k_alone_is_byte_identical_between_variants(molmo: Path, tmp_path: Path) -> None:
    base = drop_blocks(read_checkpoint(molmo), (0, 1, 3))
    for k in (1, 2):
        write(set_top_k(base, k), tmp_path / str(k))
    one, two = digests(tmp_path / "1"), digests(tmp_path / "2")
    assert one["model.safetensors"] == two["model.safetensors"]
    assert one["config.json"] != two["config.json"]
