"""The bar of `knobcast pick`: a finished sweep answers about as quickly as the program's help."""

import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT
from tests.support.sweeps import synthetic_sweep

TURNS = 9


def bench_pick(work: Path) -> dict[str, Any]:
    """Processor time of whole processes, in turns."""
    directory = work / "sweep"
    directory.mkdir()
    settings = len(synthetic_sweep(directory).points)
    commands = {
        "pick": ("pick", str(directory), "--at", "qa", "--latency-ms", "0.7x", "--accuracy", ">=0.9x"),
        "help": ("--help",),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(TURNS):
        for name, words in commands.items():
            seconds[name].append(_spent(words))
    ours, theirs = (statistics.median(seconds[name]) for name in commands)
    return {
        "settings": settings,
        "seconds": round(ours, 3),
        "help_seconds": round(theirs, 3),
        "ratio": round(ours / theirs, 2),
        "bar": "ratio <= 2",
    }


def _spent(words: tuple[str, ...]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "export.command.main", *words], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
