"""The bar of `knobcast verify --level files`: beside Python's own sums of the same files, a process each, in turns."""

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.variant import export_variant
from tests.support.noise import synthetic_olmoe
from tests.support.paths import ROOT
from tests.support.variants import record_sums
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint

# One thread on both sides. What is imported belongs to either program.
BASELINE = """
import hashlib, sys
for name in sys.argv[1:]:
    with open(name, "rb") as file:
        print(hashlib.file_digest(file, "sha256").hexdigest(), name)
"""


def bench_verify(work: Path, width: int, expert: int, runs: int) -> dict[str, Any]:
    """An OLMoE variant with all its graphs whose sums were recorded; read once before, so that no disk is timed."""
    synthetic_olmoe(work / "summed", width, expert)
    out = work / "verified"
    export_variant(make_plan(read_checkpoint(work / "summed"), Knobs(4)), out, verify=False)
    shutil.rmtree(work / "summed")
    record_sums(out)
    files = sorted(out.iterdir())
    ours = [sys.executable, "-m", "export.command.main", "verify", str(out), "--level", "files", "--quiet"]
    theirs = [sys.executable, "-c", BASELINE, *map(str, files)]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(runs):
        for own in seconds:
            start = time.perf_counter()
            subprocess.run(ours if own else theirs, cwd=ROOT, capture_output=True, check=True)
            seconds[own].append(time.perf_counter() - start)
    total = sum(path.stat().st_size for path in files)
    shutil.rmtree(out)
    median, baseline = (statistics.median(seconds[own]) for own in (True, False))
    return {
        "file_bytes": total,
        "seconds": round(median, 2),
        "file_digest_seconds": round(baseline, 2),
        "ratio": round(median / baseline, 3),
        "bar": "ratio <= 1.2",
    }


def bars(work: Path, width: int, expert: int, runs: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """By name; experts of 5/8 of the width given: 4.4 GB at full size."""
    return [("verify_files", lambda: bench_verify(work, width, expert * 5 // 8, runs))]
