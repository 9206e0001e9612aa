"""`knobcast` in a process of its own, and what that took."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

# The peak is read inside the process: the kernel's ru_maxrss of a child starts at its parent's size.
_PROGRAM = """
import json, runpy, sys, time
sys.argv = ["knobcast", *sys.argv[1:]]
try:
    runpy.run_module("export.command.main", run_name="__main__")
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    spent = {"processor_seconds": time.process_time(), "peak_mb": int(peak.split()[1]) / 1024}
    print(json.dumps(spent | {"torch": "torch" in sys.modules}), file=sys.stderr)
"""


@dataclass(frozen=True)
class Spent:
    """What a process said on stdout and took. `peak_mb`: MiB of its resident set at most; `torch`: it was imported."""

    said: str
    seconds: float
    processor_seconds: float
    peak_mb: float
    torch: bool


def knobcast(*words: str | Path) -> Spent:
    """`knobcast WORDS…`; raises SystemExit with what it said where it fails."""
    start = time.perf_counter()
    done = _run([sys.executable, "-c", _PROGRAM, *map(str, words)])
    seconds = time.perf_counter() - start
    return Spent(done.stdout, seconds, **json.loads(done.stderr.splitlines()[-1]))


def seconds_of(command: list[str]) -> float:
    """Seconds of any command; raises SystemExit where it fails."""
    start = time.perf_counter()
    _run(command)
    return time.perf_counter() - start


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"failed: {' '.join(command)}\n{done.stderr}")
    return done
