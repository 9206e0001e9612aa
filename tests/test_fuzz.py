"""The fuzzer: it finds what is wrong, tells it from refusals, keeps what shows it; and a minute of the real targets."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import onnx
import pytest

from tests.fuzz import apart
from tests.fuzz.apart import fuzz_apart
from tests.fuzz.attempts import Found, Limit, attempt, fuzz
from tests.fuzz.mutate import in_bytes, in_header, in_json, in_lines, in_protobuf
from tests.fuzz.run import chosen, replay, save
from tests.fuzz.target import Target
from tests.support.paths import ROOT
from transform.errors import CheckpointError


def parse(data: bytes) -> Any:
    """A reader with two mistakes: a list where a number belongs, and no end where the number is negative."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("no JSON") from error
    if not isinstance(value, dict) or "n" not in value:
        raise CheckpointError("no n")
    if isinstance(value["n"], list):
        return sum(value["n"], "")
    while isinstance(value["n"], int) and value["n"] == -1:
        pass
    return value


WRONG = Target("wrong", (b'{"n": 1, "m": [2, 3]}',), in_json, parse)


def test_mistakes_are_found_and_refusals_are_none(tmp_path: Path) -> None:
    found = fuzz(WRONG, Limit(seconds=1.0), 3, Found(), longest=0.05)
    assert found.runs > found.accepted > 10
    kinds = sorted(kind.partition(" at ")[0] for kind in found.faults)
    assert kinds == ["TypeError", "more than the time"]
    assert all("tests/test_fuzz.py" in kind for kind in found.faults)
    kind, data = next(item for item in found.faults.items() if "TypeError" in item[0])
    kept = save(tmp_path, WRONG, kind, data)
    assert replay(kept, [WRONG]) == kind
    right = Target("wrong", WRONG.valid, in_json, json.loads)
    assert replay(kept, [right]) is None


def test_valid_input_must_be_accepted() -> None:
    with pytest.raises(ValueError, match=r"must be accepted.*no n"):
        fuzz(Target("none", (b"{}",), in_json, parse), Limit(runs=0), 0, Found())


def test_equal_seeds_give_equal_input() -> None:
    node = onnx.helper.make_node("Add", ["x", "y"], ["z"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    for mutate, valid in (
        (in_json, WRONG.valid[0]), (in_lines, b'{"a": 1}\n{"b": 2}\n'), (in_bytes, b"abcdefgh"),
        (in_header, len(header).to_bytes(8, "little") + header + bytes(4)), (in_protobuf, model.SerializeToString()),
    ):  # fmt: skip
        made = [[mutate(Random(f"{seed}"), valid) for seed in range(40)] for _ in range(2)]
        assert made[0] == made[1]
        assert len(set(made[0])) > 20
        assert mutate(Random(1), valid) != valid or mutate(Random(2), valid) != valid


def test_most_changed_graphs_are_still_messages() -> None:
    node = onnx.helper.make_node("If", ["x"], ["z"], then_branch=onnx.helper.make_graph([], "inner", [], []))
    valid = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])).SerializeToString()
    whole = 0
    for seed in range(300):
        try:
            onnx.load_from_string(in_protobuf(Random(seed), valid))
            whole += 1
        except Exception:  # protobuf's own exception type depends on its implementation
            continue
    assert whole > 150


def test_an_attempt_that_raises_nothing_of_ours_is_a_fault() -> None:
    def exhaust(_: bytes) -> None:
        raise MemoryError

    found = Found()
    attempt(Target("memory", (b"",), in_bytes, exhaust), b"", found)
    assert [kind.partition(" at ")[0] for kind in found.faults] == ["MemoryError"]


def test_a_number_of_runs_is_kept_and_goes_on_where_it_was() -> None:
    seen: list[bytes] = []
    target = Target("seen", WRONG.valid, in_json, seen.append)
    whole = fuzz(target, Limit(runs=30), 5, Found())
    assert (whole.runs, len(seen)) == (30, 30)
    parted = fuzz(target, Limit(runs=30), 5, fuzz(target, Limit(runs=11), 5, Found()))
    assert parted.runs == 30
    assert seen[:30] == seen[30:]


def crash(data: bytes) -> None:
    """Native code that ends the process on some of its input, and a fault of ours on other."""
    if b"null" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"true" in data:
        raise KeyError("true")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # a fork beside pytest's threads
def test_a_crash_is_a_fault_and_the_runs_go_on() -> None:
    found = fuzz_apart(Target("crash", WRONG.valid, in_json, crash), Limit(runs=200), 1)
    assert found.runs == 200
    assert 100 < found.accepted < 200
    assert {kind.partition(" at ")[0] for kind in found.faults} == {"crash by signal 9", "KeyError"}
    assert b"null" in found.faults["crash by signal 9"]
    with pytest.raises(ValueError, match=r"must be accepted.*no n"):
        fuzz_apart(Target("none", (b"{}",), in_json, parse), Limit(runs=3), 0)


def spin(data: bytes) -> None:
    """Without end, and deaf to the timer, as native code is."""
    signal.setitimer(signal.ITIMER_PROF, 0)
    while b"true" in data:
        pass


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_native_code_without_end_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "STUCK", 0.2)
    found = fuzz_apart(Target("spin", WRONG.valid, in_json, spin), Limit(runs=20), 1)
    assert found.runs == 20
    assert set(found.faults) == {"no end"}


def test_some_targets_by_name() -> None:
    known = [Target(name, (), in_json, parse) for name in ("derive", "derive k", "layout")]
    assert [target.name for target in chosen(known, [])] == ["derive", "derive k", "layout"]
    assert [target.name for target in chosen(known, ["derive$,lay"])] == ["derive", "layout"]
    assert [target.name for target in chosen(known, ["layout", "derive"])] == ["layout", "derive", "derive k"]


@pytest.mark.extra
def test_a_minute_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.run", "--minutes", "1", "--keep", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
