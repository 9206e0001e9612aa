"""`make bench`: the bars of the README, measured on this machine, as ratios against a baseline in the same run.

Interleaved runs, medians, peak memory of the whole process (the kernel's own maximum of the resident set).
Writes docs/bench.json and its page; `--quick` uses a smaller checkpoint and leaves them alone.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench_activations import bars as activations_bars
from tests.bench_cost import bars as cost_bars
from tests.bench_data_files import bench_data_files
from tests.bench_decode import bars as decode_bars
from tests.bench_depth import bars as depth_bars
from tests.bench_depth import families_bars as depth_families_bars
from tests.bench_families import bars as families_bars
from tests.bench_family import bars as family_bars
from tests.bench_full_size import bars as full_size_bars
from tests.bench_headers import bars as headers_bars
from tests.bench_onnx import bars as onnx_bars
from tests.bench_opening import bars as opening_bars
from tests.bench_packed import bars as packed_bars
from tests.bench_page import FIGURES, PAGE, render
from tests.bench_pick import bench_pick
from tests.bench_pictures import bars as picture_bars
from tests.bench_publish import bars as publish_bars
from tests.bench_report import bench_report
from tests.bench_scoring import bars as scoring_bars
from tests.bench_sweep import bars as sweep_bars
from tests.bench_turns import bars as turns_bars
from tests.bench_verify import bars as verify_bars

RUNS = 5


def all_bars(
    work: Path, width: int, expert: int, runs: int, quick: bool
) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """By name, in the page's order."""
    return [
        *depth_bars(work, width, expert, runs),
        *headers_bars(work, runs),
        *family_bars(work, runs),
        *([] if quick else [*families_bars(work), *depth_families_bars(work, runs)]),
        ("families_data_files", bench_data_files),
        *([] if quick else onnx_bars(work, runs)),
        *([] if quick else decode_bars(work)),
        *opening_bars(work),
        *turns_bars(work),
        *activations_bars(work),
        *([] if quick else cost_bars(work)),
        *picture_bars(work),
        *scoring_bars(work, runs, quick),
        *([] if quick else full_size_bars(work)),
        *([] if quick else packed_bars()),
        *([] if quick else sweep_bars(work)),
        *verify_bars(work, width, expert, runs),
        *([] if quick else publish_bars(work)),
        ("pick", lambda: bench_pick(work)),
        ("report", lambda: bench_report(work)),
    ]


def main() -> None:
    """Run every bar and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller checkpoint, three runs, docs/ untouched")
    parser.add_argument("--work", type=Path, help="where the synthetic checkpoints go (about 40 GB)")
    parser.add_argument("--only", nargs="+", default=[], help="these bars; the others keep their figures in docs/")
    options = parser.parse_args()
    width, expert, runs = (512, 128, 3) if options.quick else (2048, 512, RUNS)
    work = Path(tempfile.mkdtemp(prefix="knobcast-bench-", dir=options.work))
    bars = all_bars(work, width, expert, runs, options.quick)
    unknown = set(options.only) - {name for name, _ in bars}
    if unknown:
        raise SystemExit(f"bars are {', '.join(name for name, _ in bars)}; got {', '.join(sorted(unknown))}.")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    results: dict[str, Any] = (json.loads(FIGURES.read_text()) if options.only else {}) | {"machine": machine}
    try:
        for name, bar in bars:
            if options.only and name not in options.only:
                continue
            results[name] = bar()
            print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    results = {name: results[name] for name in ("machine", *dict(bars)) if name in results}
    print(json.dumps(results, indent=2))
    if not options.quick:
        FIGURES.write_text(json.dumps(results, indent=2) + "\n")
        PAGE.write_text(render(results))


if __name__ == "__main__":
    main()
