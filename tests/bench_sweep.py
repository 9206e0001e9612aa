"""The bars of sweeping: 75 settings of the embedded model together, beside evaluating and benchmarking them one by one.

Both sides use one thread per process; what is compared is processor time, of the command and all processes it starts.
The baseline is timed on three settings, from the smallest to the largest, and their mean counts for all.
"""

import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from artifacts.nano import data
from export.gate.picture import drawn_picture
from export.sweep.table import Table, read_table
from tests.support.paths import ROOT

GRID = "k=1,2,4,6,8 blocks=8,10,12,14,16 tokens=288,432,1008"
QUESTIONS, PICTURES, NEW_TOKENS, RUNS = 200, 32, 8, 5
ONE_BY_ONE = ("k1-b8-t288", "k4-b12-t432", "k8-b16-t1008")


def ran(*words: object) -> tuple[str, float, float]:
    """(stdout, seconds of a processor, seconds of a clock) of `knobcast WORDS…`."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "export.command.main", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"failed: {' '.join(command)}\n{done.stderr}")
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def least(table: Table) -> int:
    """Block evaluations per picture that any way of measuring the settings must make: for every budget, the distinct
    states that are needed before a kept block, each with its k there."""
    states = {
        (point.tokens, tuple(ks[:block]), ks[block])
        for point in table.points
        for ks in [[dict(zip(point.keep_blocks, point.top_k, strict=True)).get(b, 0) for b in range(16)]]
        for block in point.keep_blocks
    }
    return len(states)


def bench_sweep(work: Path) -> dict[str, Any]:
    """The sweep, then three of its settings on their own."""
    data.write(work / "questions", "test", PICTURES)
    asked = ["--data", work / "questions" / "test.jsonl", "--limit", QUESTIONS, "--max-new-tokens", NEW_TOKENS]
    out = work / "sweep"
    timing = ["--runs", RUNS, "--threads", 1]
    said, cpu, wall = ran(
        "sweep", *asked, "--grid", GRID, *timing, "--executor", "processes", "--workers", 2, "--out", out, "--json"
    )
    table = read_table(out)
    failed = sum(bool(point.errors) or not point.latency for point in table.points)
    engine = json.loads(said)["engine"]["block_evaluations"]
    assert table.data is not None
    single = [_one_by_one(table, name, asked, work) for name in ONE_BY_ONE]
    settings = len(list(product(*(axis.split(",") for axis in GRID.split()))))
    alone, export = (sum(part) / len(single) * settings for part in zip(*single, strict=True))
    return {
        "settings": settings,
        "questions": table.data.samples,
        "failed": failed,
        "block_evaluations": engine,
        "over_least": round(engine / (least(table) * table.data.pictures), 4),
        "cpu_seconds": round(cpu),
        "one_by_one_cpu_seconds": round(alone),
        "ratio": round(cpu / alone, 3),
        "ratio_with_exports": round(cpu / (alone + export), 3),
        "wall_minutes": round(wall / 60, 1),
        "bar": "failed <= 0, over_least <= 1, ratio <= 0.5, wall_minutes <= 20",
    }


def _one_by_one(table: Table, name: str, asked: Sequence[object], work: Path) -> tuple[float, float]:
    """Seconds of a processor: (evaluating and benchmarking the variant, exporting it before)."""
    point, variant, picture = table.point(name), work / name, work / "picture.png"
    Image.fromarray(drawn_picture(*table.workloads["qa"].image or (1, 1))).save(picture)
    _, export, _ = ran(*shlex.split(point.command)[1:], "--out", variant)
    said, evaluate, _ = ran("evaluate", variant, *asked, "--json")
    assert point.quality is not None
    assert json.loads(said)["accuracy"] == point.quality.total.accuracy, f"{name}: evaluate says something else"
    prompt, new = point.cost.work["qa"].positions, table.workloads["qa"].new
    words = ["--against", "none", "--threads", 1, "--runs", RUNS, "--image", picture]
    _, bench, _ = ran("bench", variant, *words, "--prompt-tokens", prompt, "--new-tokens", new)
    return evaluate + bench, export


def bars(work: Path) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py."""
    return [("sweep_75", lambda: bench_sweep(work))]
