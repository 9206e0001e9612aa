"""The bar of families: 25 decoder graphs over one full-size checkpoint, in seconds and in bytes beside its own.

The checkpoint is a sparse file, so that what is timed is what a family adds to copying the weights: planning from
headers, graphs, overlays, digests and the shared graphs, in a fresh process.
"""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.full_size import released_config, write_sparse_molmoe
from tests.support.paths import ROOT

GRID = "k=1,2,4,6,8 blocks=8,10,12,14,16"
MEASURE = """
import json, re, sys, time
from pathlib import Path
start = time.perf_counter()
from export.family.family import plan_family, write_members
from export.files.genai import write_genai_config
from export.files.io_spec import write_io
from export.files.manifest import provenance_of
from export.graph.emit import emit_graphs
from transform.forms import REFERENCE
from transform.read import read_checkpoint
directory, grid, scores = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
checkpoint = read_checkpoint(directory)
base, members = plan_family(checkpoint, grid, scores=scores)
emit_graphs(checkpoint, directory, None, REFERENCE)
write_io(checkpoint, directory, REFERENCE, base.vision.as_dict())
write_genai_config(checkpoint, directory, REFERENCE)
family = write_members(base, members, checkpoint, provenance_of(base, None))
seconds = time.perf_counter() - start
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(json.dumps({
    "members": len(family.members),
    "seconds": seconds,
    "peak_bytes": int(peak) * 1024,
    "largest_graph": max(member.graph_bytes for member in family.members),
}))
"""


def bench_family(work: Path, runs: int) -> dict[str, Any]:
    """25 settings over the full-size layout in bfloat16, blocks chosen by made-up scores."""
    directory = write_sparse_molmoe(work / "family", released_config(ROOT / "tests" / "fixtures" / "molmo"), "BF16")
    scores = work / "family-scores.json"
    scores.write_text(json.dumps({str(i): (i * 7 % 16) / 16 for i in range(16)}))
    before = sum(file.stat().st_size for file in directory.iterdir())
    found = []
    for _ in range(runs):
        command = [sys.executable, "-c", MEASURE, str(directory), GRID, str(scores)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"family failed:\n{done.stderr}")
        found.append(json.loads(done.stdout))
    after = sum(file.stat().st_size for file in directory.iterdir())
    shutil.rmtree(directory)
    return {
        "members": found[0]["members"],
        "seconds": round(statistics.median(f["seconds"] for f in found), 2),
        "peak_mb": round(max(f["peak_bytes"] for f in found) / 2**20),
        "largest_graph_mb": round(found[0]["largest_graph"] / 1e6, 2),
        "bytes_ratio": round(after / before, 4),
        "bar": "seconds <= 10, largest_graph_mb <= 3, bytes_ratio <= 1.02",
    }


def bars(work: Path, runs: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py."""
    return [("family_full_size", lambda: bench_family(work, runs))]
