"""Measure the nano model's scores.json: `python -m artifacts.nano.score`.

Score of a block: accuracy of the full model minus accuracy without the block, on the calibration questions; its
standard error is that of the paired differences. Higher = more important; below 0 = better without it.
"""

import hashlib
import json
import math
import statistics

from artifacts.nano import data
from artifacts.nano.build import TARGET
from artifacts.nano.make import STATE
from artifacts.nano.measure import BLOCKS, Job, measure, paired
from importance.scores import Scores, model_digest
from transform.checkpoint import read_checkpoint


def main() -> None:
    """Measure and write."""
    full = Job("calibration")
    found = measure([full, *(Job("calibration", drop=(block,)) for block in range(BLOCKS))], STATE)
    drops = {block: list(paired(found[full], found[Job("calibration", drop=(block,))])) for block in range(BLOCKS)}
    samples = found[full].samples
    scores = Scores(
        values={block: round(statistics.fmean(drop), 6) for block, drop in drops.items()},
        stderr={block: round(statistics.stdev(drop) / math.sqrt(samples), 6) for block, drop in drops.items()},
        metric="accuracy drop of single-block ablation",
        unit="accuracy, 0..1",
        baseline=found[full].accuracy,
        samples=samples,
        model_digest=model_digest(read_checkpoint(TARGET)),
        data_digest=hashlib.sha256((data.TARGET / "calibration.jsonl").read_bytes()).hexdigest(),
        notes={"note": "Exact match on the calibration questions of artifacts/nano/data.py, all knobs full."},
    )
    (TARGET / "scores.json").write_text(json.dumps(scores.to_json(), indent=2) + "\n")


if __name__ == "__main__":
    main()
