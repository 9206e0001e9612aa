"""How long the data files of families are: what one more takes, where all its parts are known."""

import statistics
from typing import Any

from tests.support.paths import ROOT
from transform.architectures.read import known_model_types

COMPLETE = ("molmo",)  # its vision tower's tensors are listed one by one


def bench_data_files() -> dict[str, Any]:
    """Lines of every family's own file."""
    data = ROOT / "transform" / "architectures"
    lines = {name: len((data / f"{name}.json").read_text().splitlines()) for name in known_model_types()}
    known = [count for name, count in lines.items() if name not in COMPLETE]
    return {
        "families": len(lines),
        "median_lines": statistics.median(known),
        "most_lines": max(known),
        "bar": "most_lines <= 30",
    }
