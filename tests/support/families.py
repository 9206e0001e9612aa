"""The family that tests stand on: two k, one of them per block, and two depths over the reference's checkpoint."""

import json
from pathlib import Path
from typing import Any

from export.family.family import export_family, plan_family
from transform.knobs import Knobs
from transform.read import read_checkpoint

GRID = "k=2,1x2.4x1 blocks=3,4"
NAMES = ["k2-b3", "k2-b4", "k1x2.4x1-b3"]


def write_scores(folder: Path) -> str:
    """Scores of four blocks; block 1 matters least."""
    file = folder / "scores.json"
    file.write_text(json.dumps({"0": 0.9, "1": 0.1, "2": 0.2, "3": 0.8}))
    return str(file)


def write_family(
    source: Path, out: Path, grid: str = GRID, verify: bool = True, scores: str | None = None, **knobs: Any
) -> dict[str, Any]:
    """Plan and write a family; the record of its members."""
    base, members = plan_family(read_checkpoint(source), grid, Knobs(**knobs), scores)
    return export_family(base, members, out, verify=verify)
