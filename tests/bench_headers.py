"""The bars of what reads headers alone, on sparse files of full size: plans, and MolmoE-1B's graphs."""

import shutil
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench_families import QWEN3_30B, qwen3_tensors
from tests.support.full_size import measure_emission, released_config, write_sparse, write_sparse_molmoe
from tests.support.paths import FIXTURES
from tests.support.spent import Spent, knobcast


def bench_plan(work: Path, runs: int) -> dict[str, Any]:
    """`knobcast plan` on the full-size layout."""
    source = write_sparse_molmoe(work / "planned", released_config(FIXTURES))
    words: list[str | Path] = ["plan", source, "--k", "4", "--drop-blocks", "2,4,10,13", "--tokens", "432", "--json"]
    found = [knobcast(*words) for _ in range(runs)]
    shutil.rmtree(source)
    return {
        "seconds": round(statistics.median(s.seconds for s in found), 2),
        "peak_mb": round(max(s.peak_mb for s in found)),
        "bar": "seconds <= 1, peak_mb <= 150",
    }


def bench_graphs(work: Path) -> dict[str, Any]:
    """All three graphs of the full-size model."""
    source = write_sparse_molmoe(work / "emitted", released_config(FIXTURES))
    found = measure_emission(source)
    shutil.rmtree(source)
    return {
        "tensors": found["tensors"],
        "seconds": round(found["seconds"], 2),
        "peak_mb": round(found["peak_bytes"] / 2**20),
        "file_mb": round(found["file_bytes"] / 1e6, 2),
        "bar": "seconds <= 2, peak_mb <= 300, file_mb <= 5",
    }


def bench_plan_of_family(work: Path, runs: int) -> dict[str, Any]:
    """Plans of Qwen3-30B-A3B and MolmoE-1B in turns; the best of each one's runs."""
    sources = {
        "qwen3": write_sparse(work / "planned-qwen3", QWEN3_30B, qwen3_tensors(QWEN3_30B), "BF16"),
        "molmoe": write_sparse_molmoe(work / "planned-molmoe", released_config(FIXTURES), "BF16"),
    }
    found: dict[str, list[Spent]] = {name: [] for name in sources}
    for _ in range(runs):
        for name, source in sources.items():
            found[name].append(knobcast("plan", source, "--k", "4", "--drop-blocks", "2,4,10,13", "--json"))
    for source in sources.values():
        shutil.rmtree(source)
    best = {name: min(s.processor_seconds for s in spent) for name, spent in found.items()}
    return {
        "processor_seconds": round(best["qwen3"], 2),
        "molmoe_processor_seconds": round(best["molmoe"], 2),
        "ratio": round(best["qwen3"] / best["molmoe"], 2),
        "peak_mb": round(max(s.peak_mb for s in found["qwen3"])),
        "torch_imports": sum(s.torch for s in found["qwen3"]),
        "bar": "ratio <= 5, peak_mb <= 190, torch_imports <= 0",
    }


def bars(work: Path, runs: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py."""
    return [
        ("plan_full_size", partial(bench_plan, work, runs)),
        ("graphs_full_size", partial(bench_graphs, work)),
        ("families_plan", partial(bench_plan_of_family, work, runs)),
    ]
