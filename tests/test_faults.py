"""A drawn part of `make faults`: about a minute, another part with another seed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import library
from tests.support.paths import ROOT


@pytest.mark.extra
def test_a_drawn_part_of_the_campaigns_breaks_no_promise(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.run", "--seed", "7", "--points", "66"]
    command += ["--json", str(tmp_path / "points.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if library.missing():
        assert done.returncode == 2
        assert "gcc" in done.stderr or "Linux" in done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    points = json.loads((tmp_path / "points.json").read_text())
    assert len(points) == 66
    assert sum(point["killed"] for point in points) > 20


def test_without_a_compiler_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.run"],
        cwd=ROOT, env={"PATH": "/nowhere"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "gcc" in done.stderr
