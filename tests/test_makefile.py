"""The Makefile hands paths to the command as they were given."""

import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def words(target: str, **variables: str) -> list[str]:
    """The command's words, as a shell splits what make would run."""
    given = [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(["make", "-n", target, *given], cwd=ROOT, capture_output=True, text=True, check=True)
    return shlex.split(done.stdout[done.stdout.index(".venv/bin/knobcast") :].replace("\\\n", " "))


@pytest.mark.parametrize(
    "path", ["my models/x", "it's", 'a"b', "a;touch b", "x & y", "blanks (2)", "-dash", "a*b", "`id`"]
)
def test_paths_stay_whole(path: str) -> None:
    got = words("export", MODEL=path, OUT=path, SCORES=path, FAMILY="k=1,2 blocks=3")
    assert got[:3] == [".venv/bin/knobcast", "export", path]
    assert got[got.index("--out") + 1] == got[got.index("--scores") + 1] == path
    assert got[got.index("--family") + 1] == "k=1,2 blocks=3"
    got = words("score", MODEL=path, DATA=path, OUT=path)
    assert got[2] == got[got.index("--data") + 1] == got[got.index("--out") + 1] == path
    got = words("search", MODEL=path, DATA=path, STRATEGY="exact")
    assert (got[1], got[2], got[got.index("--data") + 1], got[-2:]) == ("search", path, path, ["--strategy", "exact"])
    assert words("bench-variant", DIR=path)[2] == path


def test_the_home_folder_is_still_the_shells() -> None:
    done = subprocess.run(["make", "-n", "export", "MODEL=~/my models/x"], cwd=ROOT, capture_output=True, text=True)
    assert "export ~/'my models/x'" in done.stdout
    assert "--out" not in words("export")
