"""The fuzzer: it finds what is wrong, tells it from refusals, keeps what shows it; and a minute of the real targets."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import onnx
import pytest

from tests.fuzz.mutate import in_bytes, in_header, in_json, in_lines, in_protobuf
from tests.fuzz.run import Found, attempt, fuzz, replay, save
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
    found = fuzz(WRONG, 1.0, 3, longest=0.05)
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
        fuzz(Target("none", (b"{}",), in_json, parse), 0.0, 0)


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


@pytest.mark.extra
def test_a_minute_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.run", "--minutes", "1", "--keep", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
