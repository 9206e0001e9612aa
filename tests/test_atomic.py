"""Single files, temporary folders and job folders: what a killed or beaten run leaves, and who removes it."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from export.command.main import app
from export.command.score_files import score_blocks
from importance.atomic import _host, make_folder, sweep_staged, write_atomically
from importance.store import job_folder
from tests.support.paths import ROOT
from transform.errors import WriteError
from transform.scratch import scratch

DEAD = 999_999_999


def test_a_killed_writer_leaves_nothing_for_long(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom importance.atomic import write_atomically\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), 'text', force=True)\n"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "s.json")], cwd=ROOT, check=False)
    assert len(list(tmp_path.iterdir())) == 1  # the second one removed the first one's
    write_atomically(tmp_path / "s.json", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]


def test_only_what_is_known_to_be_dead_is_removed(tmp_path: Path) -> None:
    mine, others = f".s.json.{_host()}-{DEAD}-00.tmp", [
        f".s.json.{_host()}-{os.getpid()}-00.tmp", f".s.json.00000000-{DEAD}-00.tmp", ".s.json.1-00.tmp",
        f".t.json.{_host()}-{DEAD}-00.tmp", "s.json.tmp",
    ]  # fmt: skip
    for name in (mine, *others):
        (tmp_path / name).write_text("")
    write_atomically(tmp_path / "s.json", "text")
    assert {p.name for p in tmp_path.iterdir()} == {"s.json", *others}
    sweep_staged(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"s.json", *others} - {others[3]}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_how_much_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(_: int) -> None:
        raise OSError(number, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"1,000 bytes are needed, [\d,]+ are free; .*Free space"):
        write_atomically(tmp_path / "s.json", "x" * 1000)
    assert list(tmp_path.iterdir()) == []


# Temporary folders


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_folder_that_can_not_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match=r"a file has its name"):
        make_folder(tmp_path / "file")
    make_folder(tmp_path / "new")
    make_folder(tmp_path / "new")
    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(WriteError, match=r"Read-only" if number == errno.EROFS else r"the disk is full"):
        make_folder(tmp_path / "other")


def test_temporary_folders_of_killed_runs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = [f"knobcast-{purpose}-{DEAD}-abc_1" for purpose in ("operators", "user", "bench")]
    kept = [f"knobcast-user-{os.getpid()}-abc", "knobcast-mine", f"knobcast-x-{DEAD}-link", f"other-user-{DEAD}-abc"]
    for name in left + kept:
        if name.endswith("link"):
            (tmp_path / name).symlink_to(tmp_path / kept[0])
        else:
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.safetensors").write_text("x")
    with scratch("operators") as folder:
        assert {p.name for p in tmp_path.iterdir()} == {*kept, folder.name}
    assert {p.name for p in tmp_path.iterdir()} == set(kept)


def test_every_temporary_folder_can_be_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.gate.op_checks import run_checks

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    checks = run_checks("cpu", None)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        for _ in checks:
            (folder,) = tmp_path.iterdir()
            assert f"-{os.getpid()}-" in folder.name


# Folders of jobs


def never() -> bool:
    return False


def test_the_last_run_removes_the_folder(tmp_path: Path) -> None:
    place = tmp_path / "s.json.jobs"
    first, second = job_folder(place, False, never), job_folder(place, False, never)
    first.__enter__()
    second.__enter__()
    (place / "a.json").write_text("{}")
    first.__exit__(None, None, None)
    assert (place / "a.json").is_file()  # the other one needs it
    second.__exit__(None, None, None)
    assert not place.exists()


@pytest.mark.parametrize("error", [None, RuntimeError, WriteError, KeyboardInterrupt])
@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("jobs", [1, 0])
def test_what_stays(tmp_path: Path, error: Any, taken: bool, kept: bool, jobs: int) -> None:
    try:
        with job_folder(tmp_path / "jobs", kept, lambda: taken):
            for n in range(jobs):
                (tmp_path / "jobs" / f"{n}.json").write_text("{}")
            if error is not None:
                raise error("x")
    except (RuntimeError, WriteError, KeyboardInterrupt):
        pass
    goes = not kept and (error is None or (error is WriteError and taken))
    assert (tmp_path / "jobs").exists() == ((bool(jobs) and not goes) or (kept and error is None and False))


def test_a_folder_of_the_users_stays_though_empty(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    with pytest.raises(RuntimeError), job_folder(tmp_path / "jobs", True, never):
        raise RuntimeError
    assert (tmp_path / "jobs").is_dir()


def test_a_folder_that_goes_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, flock, calls = tmp_path / "jobs", fcntl.flock, iter(range(9))

    def slow(handle: int, how: int) -> None:
        if next(calls) == 0:
            place.rmdir()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with job_folder(place, False, never):
        assert place.is_dir()
    assert not place.exists()


def test_two_scorings_to_one_file_leave_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins and ends while the first computes; the first is told about the file and not about a folder."""
    rows = [{"id": name, "image": None, "prompt": "What is this?", "answers": [name]} for name in ("a", "b")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["score", "--data", str(tmp_path / "q.jsonl"), "--metric", "block_influence", "--json"]
    arguments += ["--out", str(tmp_path / "s.json")]
    second: list[Any] = []

    def late(*given: Any) -> dict[str, Any]:
        if not second:
            second.append(None)
            second[0] = CliRunner().invoke(app, arguments)
            assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["s.json.jobs"]
        return score_blocks(*given)

    monkeypatch.setattr("export.command.score.score_blocks", late)
    first = CliRunner().invoke(app, arguments)
    assert second[0].exit_code == 0, second[0].output
    assert isinstance(first.exception, WriteError) and "s.json exists" in str(first.exception)
    assert {p.name for p in tmp_path.iterdir()} == {"q.jsonl", "s.json"}


# Where stdout takes nothing


@pytest.mark.parametrize("arguments", [["plan", "--k", "2"], ["export", "--k", "2", "--dry-run"]])
def test_a_full_stdout_is_said_in_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "export.command.main", *arguments, "--json"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "stdout must take the JSON object: No space left" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
