"""Jobs: kept, resumed, retried, isolated; damaged and foreign files; interruptions; two runs at once."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from importance.jobs import JobsError, pack, run_jobs, unpack
from transform.errors import KnobError, WriteError

Object = dict[str, Any]
SPECS: list[Object] = [{"n": n} for n in range(4)]


class Counted:
    """Squares, counting its calls; fails as told."""

    def __init__(self, fail: Callable[[int, int], None] = lambda n, calls: None) -> None:
        self.calls: list[int] = []
        self.fail = fail

    def __call__(self, spec: Object) -> Object:
        self.calls.append(spec["n"])
        self.fail(spec["n"], self.calls.count(spec["n"]))
        return {"square": spec["n"] ** 2}


def squares(count: int = 4) -> list[Object]:
    return [{"square": n**2} for n in range(count)]


def one_file(store: Path, n: int) -> Path:
    return next(path for path in store.iterdir() if json.loads(path.read_text())["spec"] == {"n": n})


def test_results_come_in_order_and_a_rerun_computes_nothing(tmp_path: Path) -> None:
    function, steps = Counted(), list[int]()
    assert run_jobs(function, SPECS, tmp_path / "a" / "store", progress=steps.append) == squares()
    assert run_jobs(function, SPECS[::-1], tmp_path / "a" / "store", progress=steps.append) == squares()[::-1]
    assert function.calls == [0, 1, 2, 3]
    assert steps == [1] * 8


def test_equal_jobs_are_one_however_they_are_written(tmp_path: Path) -> None:
    function, steps = Counted(), list[int]()
    specs = [{"n": 2, "drop": (1, 2)}, {"drop": [1, 2], "n": 2}, {"n": 2, "drop": []}]
    assert run_jobs(function, specs, tmp_path, progress=steps.append) == [{"square": 4}] * 3
    assert function.calls == [2, 2]
    assert sorted(steps) == [1, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_new_result_equals_the_one_that_is_read_back(tmp_path: Path) -> None:
    def function(spec: Object) -> Object:
        return {"pair": (1, 0.1 + 0.2), "text": "ü"}

    assert run_jobs(function, SPECS[:1], tmp_path) == run_jobs(function, SPECS[:1], tmp_path)
    assert run_jobs(function, SPECS[:1], tmp_path)[0]["pair"] == [1, 0.1 + 0.2]


def test_numbers_as_keys_become_text_and_are_found_again(tmp_path: Path) -> None:
    function = Counted()
    spec = {"n": 1, "drop": {9: 0, 10: 1}}
    assert run_jobs(function, [spec, json.loads(json.dumps(spec))], tmp_path) == [{"square": 1}] * 2
    run_jobs(function, [spec], tmp_path)
    assert function.calls == [1]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"result": {}}', "cut", "value", "spec", "null"])
def test_a_damaged_or_foreign_file_is_computed_again(tmp_path: Path, damage: str) -> None:
    run_jobs(Counted(), SPECS, tmp_path)
    path = one_file(tmp_path, 3)
    whole = path.read_text()
    replaced = {
        "cut": whole[:-5],
        "value": whole.replace('"square": 9', '"square": 8'),
        "spec": whole.replace('"n": 3', '"n": 2'),
        "null": whole.replace('{"square": 9}', "null"),
    }
    path.write_text(replaced.get(damage, damage))
    function = Counted()
    assert run_jobs(function, SPECS, tmp_path) == squares()
    assert function.calls == [3]
    assert path.read_text() == whole


def test_one_failure_stops_no_other_job_and_a_rerun_goes_on(tmp_path: Path) -> None:
    def fail(n: int, calls: int) -> None:
        if n in (1, 2):
            raise ValueError(f"no {n}.")

    function = Counted(fail)
    with pytest.raises(
        JobsError, match=r"2 of 4 failed, the first one because ValueError: no 1\. The other 2"
    ) as error:
        run_jobs(function, SPECS, tmp_path)
    assert function.calls == [0, 1, 2, 3, 1, 2]  # each tried again, after all the others
    assert error.value.failed == (({"n": 1}, "ValueError: no 1."), ({"n": 2}, "ValueError: no 2."))
    assert "test_jobs.py" in error.value.__notes__[0]
    again = Counted()
    assert run_jobs(again, SPECS, tmp_path) == squares()
    assert again.calls == [1, 2]


@pytest.mark.parametrize(("retries", "works"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_job_is_tried_again_as_often_as_told(tmp_path: Path, retries: int, works: bool) -> None:
    def fail(n: int, calls: int) -> None:
        if n == 3 and calls < 3:
            raise OSError("flaky")

    function = Counted(fail)
    if works:
        assert run_jobs(function, SPECS, tmp_path, retries=retries) == squares()
    else:
        with pytest.raises(JobsError, match="1 of 4 failed"):
            run_jobs(function, SPECS, tmp_path, retries=retries)
    assert function.calls.count(3) == min(3, retries + 1)


def test_bad_input_is_not_tried_again(tmp_path: Path) -> None:
    def fail(n: int, calls: int) -> None:
        if n == 1:
            raise KnobError("k must be from 1 to 8, got 9. Lower it.")

    function = Counted(fail)
    with pytest.raises(JobsError, match="because k must be from 1 to 8, got 9"):
        run_jobs(function, SPECS, tmp_path, retries=5)
    assert function.calls.count(1) == 1


def test_one_refusal_of_all_jobs_is_that_refusal(tmp_path: Path) -> None:
    """The same again would be refused again, and no result is kept."""

    def fail(n: int, calls: int) -> None:
        raise KnobError("scoring needs other blocks. Name them yourself.")

    with pytest.raises(JobsError) as error:
        run_jobs(Counted(fail), SPECS, tmp_path)
    assert str(error.value) == "scoring needs other blocks. Name them yourself."
    assert len(error.value.failed) == len(SPECS)


def test_a_job_that_exits_is_a_failure_and_not_the_end(tmp_path: Path) -> None:
    def fail(n: int, calls: int) -> None:
        if n == 0:
            raise SystemExit(2)

    with pytest.raises(JobsError, match="1 of 4 failed, the first one because SystemExit: 2"):
        run_jobs(Counted(fail), SPECS, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_long_reason_is_shortened_in_the_message_only(tmp_path: Path) -> None:
    def fail(n: int, calls: int) -> None:
        raise ValueError("first line\n" + "x" * 1000)

    with pytest.raises(JobsError, match=r"first line x+…\. The other 0") as error:
        run_jobs(Counted(fail), SPECS[:1], tmp_path)
    assert len(str(error.value)) < 700
    assert error.value.failed[0][1] == "ValueError: first line\n" + "x" * 1000


@pytest.mark.parametrize("wrong", [{"n": float("nan")}, {(1, 2): 2}, {"n": {2}}, [1], {"n": np.ones(2)}])
def test_a_job_that_is_no_json_object_is_refused_before_any_runs(tmp_path: Path, wrong: Any) -> None:
    function = Counted()
    with pytest.raises(JobsError, match=r"a job must be a JSON object .* got "):
        run_jobs(function, [*SPECS, wrong], tmp_path)
    assert function.calls == []


@pytest.mark.parametrize("wrong", [{"n": float("inf")}, None, {"n": np.float32(1)}])
def test_so_is_such_a_result(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(JobsError, match=r"^a job's result must be a JSON object"):
        run_jobs(lambda spec: wrong, SPECS[:1], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    def fail(n: int, calls: int) -> None:
        if n == 2 and calls == 1:
            raise KeyboardInterrupt

    function = Counted(fail)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(function, SPECS, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert run_jobs(function, SPECS, tmp_path) == squares()
    assert function.calls == [0, 1, 2, 2, 3]


def test_ctrl_c_cancels_what_waits(tmp_path: Path) -> None:
    function, specs = Counted(lambda n, calls: time.sleep(0.02)), [{"n": n} for n in range(50)]

    def progress(count: int) -> None:
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        run_jobs(function, specs, tmp_path, pool, progress)
    assert 1 <= len(function.calls) < 10
    assert len(list(tmp_path.iterdir())) == len(function.calls)


class Elsewhere:
    """Runs at once, as if on a machine that does not see the store; its results are no futures."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return Answer(function(*args[:-1], "/nowhere/to/be/seen"))


class Answer:
    def __init__(self, value: Any) -> None:
        self.value = value

    def result(self) -> Any:
        return self.value


def test_results_of_workers_that_do_not_see_the_store_are_kept_by_the_run(tmp_path: Path) -> None:
    function = Counted()
    assert run_jobs(function, SPECS, tmp_path, Elsewhere()) == squares()
    assert run_jobs(function, SPECS, tmp_path) == squares()
    assert function.calls == [0, 1, 2, 3]


class Slurmish:
    """Like submitit's: jobs are packed by `batch`, started when it ends, and must be asked whether they are done."""

    def __init__(self) -> None:
        self.batches: list[list[SlurmishJob]] = []

    @contextmanager
    def batch(self) -> Iterator[None]:
        self.batches.append([])
        yield
        for job in self.batches[-1]:
            job.started = True

    def submit(self, *call: Any) -> "SlurmishJob":
        self.batches[-1].append(SlurmishJob(call))
        return self.batches[-1][-1]


class SlurmishJob:
    def __init__(self, call: Any) -> None:
        self.call, self.started, self.asked = call, False, 0

    def done(self) -> bool:
        assert self.started
        self.asked += 1
        return self.asked > 1

    def result(self) -> Any:
        assert self.asked > 1, "would block while others are done"
        if self.call[2] == '{"n":1}' and self.asked < 3:
            raise RuntimeError("node failure")
        return self.call[0](*self.call[1:])


def test_batches_become_arrays_and_a_lost_job_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importance.jobs.POLL_SECONDS", 0.0)
    monkeypatch.setattr("importance.jobs.ARRAY", 3)
    executor = Slurmish()
    with pytest.raises(JobsError, match=r"1 of 4 failed.* its worker died or refused it .RuntimeError: node failure"):
        run_jobs(Counted(), SPECS, tmp_path, executor)
    assert [len(batch) for batch in executor.batches] == [3, 1, 1]


class Broken:
    """A pool that takes one job and is broken afterwards."""

    def __init__(self) -> None:
        self.taken = 0

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        self.taken += 1
        if self.taken > 1:
            raise RuntimeError("broken")
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future


def test_an_executor_that_takes_no_more_keeps_what_finished(tmp_path: Path) -> None:
    with pytest.raises(JobsError, match=r"3 of 4 failed, .*RuntimeError: broken.*The other 1 are kept"):
        run_jobs(Counted(), SPECS, tmp_path, Broken())
    assert len(list(tmp_path.iterdir())) == 1


def test_two_runs_at_once_do_each_other_no_harm(tmp_path: Path) -> None:
    specs = [{"n": n} for n in range(30)]
    function, results = Counted(lambda n, calls: time.sleep(0.002)), dict[int, list[Object]]()

    def run(number: int) -> None:
        results[number] = run_jobs(function, specs[:: 1 - 2 * number], tmp_path)

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1][::-1] == squares(30)
    assert len(function.calls) < 40  # from both ends: what the other one has done is taken from it
    assert len(list(tmp_path.iterdir())) == 30


def test_left_over_temporary_files_go_when_they_are_old(tmp_path: Path) -> None:
    old, new = tmp_path / ".aa.json.1-00.tmp", tmp_path / ".bb.json.1-00.tmp"
    for path in (old, new):
        path.write_text("")
    os.utime(old, (0, 0))
    run_jobs(Counted(), SPECS, tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_store_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot keep results"):
        run_jobs(Counted(), SPECS, tmp_path / "file")


def test_a_result_that_cannot_be_written_is_an_error_with_the_path(tmp_path: Path) -> None:
    run_jobs(Counted(), SPECS[:1], tmp_path)
    path = one_file(tmp_path, 0)
    path.unlink()
    path.mkdir()
    with pytest.raises(WriteError, match=path.name):
        run_jobs(Counted(), SPECS, tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_arrays_survive_packing_bit_by_bit(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    found = unpack(json.loads(json.dumps(pack(array))))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()
    assert pack(np.array([np.nan])) == pack(np.array([np.nan]))


@pytest.mark.parametrize("damage", ["", "!", "AAAA", pack(np.ones(3))[:-8]])
def test_damaged_arrays_are_refused(damage: str) -> None:
    with pytest.raises(JobsError, match="packed array"):
        unpack(damage)


def test_arrays_of_python_objects_are_not_packed() -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        pack(np.array([{}], dtype=object))
