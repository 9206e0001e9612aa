"""Executors by name: this process, several processes; workers that die; threads; settings that can't be."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from importance.executors import ExecutorError, open_executor, processors
from importance.jobs import JobsError, run_jobs


def job(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs in a worker: says where, or dies where a file tells it to."""
    if Path(spec.get("dies_while", "/nowhere/there")).exists():
        os._exit(7)
    if spec.get("sleep"):
        time.sleep(spec["sleep"])
    return {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}


def torch_threads(spec: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {"threads": torch.get_num_threads()}


@pytest.mark.parametrize("name", [None, "local"])
def test_local_is_this_process(tmp_path: Path, name: str | None) -> None:
    with open_executor(name, None) as executor:
        assert executor is None
        assert run_jobs(job, [{}], tmp_path, executor)[0]["pid"] == os.getpid()


def test_processes_share_the_work_and_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("importance.executors.processors", lambda: 7)
    with open_executor("processes", 2) as executor:
        found = run_jobs(job, [{"n": n, "sleep": 0.5} for n in range(4)], tmp_path, executor)
    assert len({one["pid"] for one in found} - {os.getpid()}) == 2
    assert {one["threads"] for one in found} == {"3"}
    assert run_jobs(job, [{"n": 0, "sleep": 0.5}], tmp_path) == found[:1]


def test_torch_takes_its_share_of_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("importance.executors.processors", lambda: 1)
    with open_executor("processes", 1) as executor:
        assert run_jobs(torch_threads, [{}], tmp_path, executor) == [{"threads": 1}]


def test_threads_that_the_user_has_set_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with open_executor("processes", 2) as executor:
        assert run_jobs(job, [{}], tmp_path, executor)[0]["threads"] == "5"


def test_a_worker_that_dies_loses_only_what_it_had(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    specs: list[dict[str, Any]] = [{"n": 0}, {"n": 1}, {"dies_while": str(flag)}, {"n": 3}]
    with pytest.raises(JobsError, match=r"2 of 4 failed.*worker died.*BrokenProcessPool.*The other 2 are kept"):  # noqa: SIM117
        with open_executor("processes", 1) as executor:
            run_jobs(job, specs, tmp_path / "store", executor)
    assert len(list((tmp_path / "store").iterdir())) == 2
    flag.unlink()
    found = run_jobs(job, specs, tmp_path / "store")
    assert [one["pid"] == os.getpid() for one in found] == [False, False, True, True]


def test_ctrl_c_ends_the_workers_soon(tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), open_executor("processes", 1) as executor:
        run_jobs(job, [{"n": 0}, {"sleep": 300}], tmp_path, executor, interrupt)
    assert time.monotonic() - start < 60
    assert len(list(tmp_path.iterdir())) == 1
    assert not [thread for thread in threading.enumerate() if "Executor" in type(thread).__name__ and thread.is_alive()]


@pytest.mark.parametrize(
    ("name", "workers", "words"),
    [
        ("slurm", None, "one of local, processes, ray, got 'slurm'"),
        ("processes", 0, "1 or more, got 0"),
        ("processes", -2, "1 or more, got -2"),
        ("local", 2, "this process; got --workers 2"),
        (None, 2, "this process; got --workers 2"),
    ],
)
def test_settings_that_cannot_be(name: str | None, workers: int | None, words: str) -> None:
    with pytest.raises(ExecutorError, match=words), open_executor(name, workers):
        pass


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError, match=r'pip install -e "\.\[ray\]"'), open_executor("ray", 2):
        pass


def test_there_is_a_processor() -> None:
    assert 1 <= processors() <= (os.cpu_count() or 1)


KILLED = """
import os, sys, time
from importance.executors import open_executor

def pause(seconds):
    time.sleep(seconds)

if __name__ == "__main__":
    with open_executor("processes", 2) as pool:
        pids = {pool.submit(os.getpid).result()}
        while len(pids) < 2:
            pids.update(future.result() for future in [pool.submit(os.getpid) for _ in range(8)])
        busy = pool.submit(pause, 600)  # one works, the other one waits
        print(*pids, flush=True)
        sys.stdin.read()
"""


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(KILLED)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.wait()  # its pipes stay open as long as the workers do
    waited = 0
    try:
        while any(map(_alive, workers)):
            waited += 1
            assert waited < 300, "the workers live on"
            time.sleep(0.1)
    finally:
        for pid in filter(_alive, workers):
            os.kill(pid, signal.SIGKILL)
        parent.communicate()


def _alive(pid: int) -> bool:
    """Whether a process runs; a zombie, whose new parent hasn't asked for it, doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
