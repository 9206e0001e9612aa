"""The bars of cutting pictures: `preprocess.onnx` beside the Python code on a photo's 12 megapixels, in turns.

Both have the pixels already, one thread, and what `knobcast run` adds: the graph its checks and session options.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from export.graph.preprocess import preprocess_graph
from export.run.io_file import Policy
from export.run.picture import cut_by_graph, cut_by_python
from export.run.session import open_session
from export.run.session_options import SESSION_OPTIONS
from tests.support.paths import ROOT
from transform.special_tokens import ImageTokens

SIDES, TURNS = (3000, 4000), 5
IDS = ImageTokens(start=0, end=1, patch=2, column=3)
PEAK = """
import json, sys
from pathlib import Path
import numpy as np
from export.run.picture import cut_by_graph
from export.run.session import open_session
from export.run.session_options import SESSION_OPTIONS
path, policy, sides = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
session = open_session(path, SESSION_OPTIONS, threads=1)
cut_by_graph(session, np.full((*sides, 3), 7, np.uint8), policy)  # zeros would take no memory
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def bench_cutting(work: Path, tokens: int | None, max_crops: int) -> dict[str, Any]:
    """Seconds of a processor, and the most memory of a process that opens the graph and cuts one photo."""
    policy: Policy = {"tokens": tokens, "max_crops": max_crops, "resize": "pad", "rule": "canvas"}
    path = work / f"preprocess-{max_crops}.onnx"
    preprocess_graph(IDS, **policy).write(path)
    session = open_session(path, SESSION_OPTIONS, threads=1)
    image = np.random.default_rng(0).integers(0, 256, (*SIDES, 3), np.uint8)
    ways: dict[str, Callable[[], object]] = {
        "graph": lambda: cut_by_graph(session, image, policy),
        "python": lambda: cut_by_python(image, policy, list(IDS)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, TURNS):
        for name, cut in ways.items():
            start = time.process_time()
            cut()
            if turn >= 0:
                seconds[name].append(time.process_time() - start)
    ours, theirs = (statistics.median(seconds[name]) for name in ("graph", "python"))
    command = [sys.executable, "-c", PEAK, str(path), json.dumps(policy), json.dumps(SIDES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    picture, peak = image.size * 4, int(done.stdout) * 1024
    return {
        "onnxruntime": onnxruntime.__version__,
        "seconds": round(ours, 3),
        "python_seconds": round(theirs, 3),
        "ratio": round(ours / theirs, 2),
        "picture_mb": round(picture / 2**20),
        "peak_mb": round(peak / 2**20),
        "peak_ratio": round(peak / picture, 2),
        "bar": "ratio <= 1.5, peak_ratio <= 4",
    }


def bars(work: Path) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py."""
    return [
        ("cut_12_megapixels", lambda: bench_cutting(work, 432, 2)),
        ("cut_12_megapixels_in_12", lambda: bench_cutting(work, None, 12)),
    ]
