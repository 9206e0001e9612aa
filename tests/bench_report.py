"""What a report takes: bytes of the page, and processor time with and without plots as files."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from export.report.page import MAX_BYTES
from tests.support.paths import ROOT
from tests.support.reports import reported_sweep


def bench_report(work: Path) -> dict[str, Any]:
    """75 settings, two workloads, two pictures, scores."""
    directory = work / "report"
    directory.mkdir()
    reported_sweep(directory)
    page = directory / "report.html"
    return {
        "settings": 75,
        "workloads": 2,
        "seconds": _spent(directory, "--no-plots"),
        "seconds_with_plots": _spent(directory, "--plots"),
        "page_kb": round(page.stat().st_size / 1000),
        "bar": f"page_kb <= {MAX_BYTES // 1000}",
    }


def _spent(directory: Path, plots: str) -> float:
    """Processor seconds of the whole command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "export.command.main", "report", directory, plots, "--force"]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)
