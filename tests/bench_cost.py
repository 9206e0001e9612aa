"""The bar of estimates: 75 settings of the embedded model timed, a device fitted to 8 of them, the others predicted."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from export.cost.calibrate import Measured, calibrate
from export.cost.count import count
from export.cost.work import Workload
from export.family.family import export_family, plan_family
from export.gate.picture import drawn_picture
from export.run.bound import Bound
from export.run.graphs import Graphs
from export.run.io_file import ROLES
from tests.support.paths import ROOT
from transform.arrays import Array
from transform.knobs import Knobs
from transform.molmoe.preprocessing import Preprocessed, preprocess
from transform.plan import Plan, make_plan
from transform.read import read_checkpoint

GRID = "k=1,2,4,6,8 blocks=8,10,12,14,16"
BUDGETS = (288, 432, 1008)
ASKED = Workload((640, 480), 32, 8)
POINTS = 8
RUNS = 3


def bench_cost(work: Path, form: str) -> dict[str, Any]:
    """Estimated against measured totals: a picture, 32 tokens of text, 8 of answer; one thread."""
    source = read_checkpoint(ROOT / "artifacts" / "molmoe-nano")
    base, members = plan_family(source, GRID, Knobs(form=form))
    out = work / f"cost-{form}"
    family = export_family(base, members, out, verify=False)
    shared = Graphs(out, "cpu", 1)
    looks = {tokens: _look(shared, tokens) for tokens in BUDGETS}
    points = []
    for member, plan in zip(family["members"], members, strict=True):
        graphs = Graphs(out, "cpu", 1, member["graph"])
        graphs.__dict__.update(vision=shared.vision, embedding=shared.embedding)
        for tokens, (cut, ids, seen) in looks.items():
            points.append(_measured(graphs, plan, tokens, cut, ids, seen))
    found = calibrate(points, POINTS, "here", "cpu", 1e9)
    assert found.unseen is not None
    return {
        "settings": len(points),
        "calibrated_on": len(found.used),
        "median_error": round(found.every.median, 3),
        "largest_error": round(found.every.worst, 3),
        "rank_correlation": round(found.every.rank or 0.0, 4),
        "median_error_of_unseen": round(found.unseen.median, 3),
        **{f"median_error_of_{name}": round(error, 3) for name, error in found.every.stages.items()},
        "bar": "median_error <= 0.15, rank_correlation >= 0.95",
    }


def _look(graphs: Graphs, tokens: int) -> tuple[Preprocessed, Array, float]:
    """(the picture cut, the prompt's ids [1, P], seconds of cutting it and of its features)."""
    assert ASKED.image is not None
    picture, special = drawn_picture(*ASKED.image), graphs.io["special_ids"]
    spent = []
    for _ in range(1 + RUNS):
        start = time.perf_counter()
        cut = preprocess(picture, tokens)
        Bound(graphs).see(cut.images, cut.image_masks, cut.feature_index)
        spent.append(time.perf_counter() - start)
    stream = cut.image_tokens(*(special[role] for role in ROLES))
    words = np.random.default_rng(0).integers(20, 700, ASKED.prompt)
    ids = np.concatenate(([special["bos"]], stream, words))[None].astype(np.int64)
    return cut, ids, statistics.median(spent[1:])


def _measured(graphs: Graphs, plan: Plan, tokens: int, cut: Preprocessed, ids: Array, seen: float) -> Measured:
    """Medians of one setting's prompt and steps."""
    prompts, steps = [], []
    for turn in range(1 + RUNS):
        sequence = Bound(graphs)
        sequence.see(cut.images, cut.image_masks, cut.feature_index)
        start = time.perf_counter()
        token = int(sequence.prefill(ids).argmax())
        prompt = time.perf_counter() - start
        for _ in range(ASKED.new - 1):
            start = time.perf_counter()
            token = int(sequence.decode(token).argmax())
            steps += [time.perf_counter() - start] * (turn > 0)
        prompts += [prompt] * (turn > 0)
    at_budget = make_plan(plan.source, replace(plan.knobs, tokens=tokens))
    seconds = {"vision": seen, "prefill": statistics.median(prompts), "decode": statistics.median(steps)}
    return Measured(at_budget.name, count(at_budget, ASKED), at_budget.form, seconds)


def bars(work: Path) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py."""
    return [("cost_int4", lambda: bench_cost(work, "int4")), ("cost_cpu", lambda: bench_cost(work, "cpu"))]
