"""How much memory a command takes."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.paths import ROOT


def peak_of(*arguments: str | Path, env: Mapping[str, str]) -> int:
    """Peak resident MiB of `knobcast ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "tests.programs.peak_of_command", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])
