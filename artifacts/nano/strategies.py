"""What searches and metrics find on the embedded model: `python -m artifacts.nano.strategies` -> docs/search.json, .md.

Sets of blocks are chosen on calibration questions and judged by accuracy on the test questions, which no search saw.
"""

import json
from pathlib import Path
from typing import Any

from rich.progress import Progress

from artifacts.nano import data
from artifacts.nano.build import TARGET
from artifacts.nano.make import STATE
from artifacts.nano.measure import BLOCKS, Job, measure
from importance import agreement, read_scores
from importance.executors import open_executor
from importance.metrics import METRICS
from importance.results import allocated
from importance.score import Scorer, Setting
from importance.search import strategy
from importance.search.top_k import keep_top_k
from importance.tasks import wilson
from transform.read import read_checkpoint

DOCS = Path(__file__).parents[2] / "docs"
QUESTIONS = 200  # of the calibration file: all sets of at most 6 blocks are measured on them
PROTECTED = frozenset({0, 1, 2, 3, 15})  # besides the usual two those whose drops are far above all others
DEPTHS = (14, 12, 10)
SEARCHES = ("exact", "beam", "greedy", "window", "one_shot")
MEAN_K, KS = 4, (1, 2, 4, 6)


def main() -> None:
    """Search, judge, write."""
    checkpoint, store = read_checkpoint(TARGET), STATE / "searches"
    calibration = data.TARGET / "calibration.jsonl"
    content: dict[str, Any] = {"questions": QUESTIONS, "depths": DEPTHS, "searches": {}, "sets": [], "metrics": []}
    chosen: dict[str, dict[int, tuple[int, ...]]] = {}
    with open_executor("processes") as pool, Progress() as bar:
        task = bar.add_task("questions", total=None)
        few = Scorer(
            Setting(checkpoint, calibration, limit=QUESTIONS, metric="nll"), store, pool,
            lambda done: bar.advance(task, done),
        )  # fmt: skip
        full = few.setting.full
        for name in SEARCHES:
            found = strategy(name).search(few.measure, full, BLOCKS - min(DEPTHS), protected=PROTECTED)
            chosen[f"{name}, nll"] = {depth: found.best[BLOCKS - depth - 1].dropped for depth in DEPTHS}
            content["searches"][name] = {
                "sets": found.cost.sets,
                "block_evaluations": found.cost.block_evaluations,
                "naive_block_evaluations": found.cost.naive_block_evaluations,
                "loss": {str(depth): found.best[BLOCKS - depth - 1].loss for depth in DEPTHS},
                "full_loss": found.baseline.loss,
            }
        drops = read_scores(TARGET / "scores.json", BLOCKS).values
        for metric in METRICS:
            setting = Setting(checkpoint, calibration, metric=metric.name, max_new_tokens=4)
            scores = Scorer(setting, store, pool, lambda done: bar.advance(task, done)).scores()
            rho, band = agreement([scores.importance[b] for b in range(BLOCKS)], [drops[b] for b in range(BLOCKS)])
            content["metrics"].append({"metric": metric.name, "spearman": rho, "band": band})
            if metric.name in ("accuracy", "block_influence"):
                kept = {depth: keep_top_k(scores.importance, depth, BLOCKS) for depth in DEPTHS}
                chosen[f"ranking, {metric.name}"] = {
                    depth: tuple(sorted(set(range(BLOCKS)) - set(kept[depth]))) for depth in DEPTHS
                }
        content["widths"] = allocated(few, MEAN_K, KS)
    jobs = {drop: Job("test", drop=drop) for sets in chosen.values() for drop in sets.values()}
    results = measure([Job("test"), *jobs.values()], STATE)
    for name, sets in chosen.items():
        for depth, drop in sets.items():
            found_accuracy = results[jobs[drop]]
            low, high = wilson(found_accuracy.accuracy, found_accuracy.samples)
            content["sets"].append(
                {"choice": name, "blocks": depth, "dropped": drop, "accuracy": found_accuracy.accuracy,
                 "low": low, "high": high, "samples": found_accuracy.samples}
            )  # fmt: skip
    content["full_accuracy"] = results[Job("test")].accuracy
    content = json.loads(json.dumps(content))
    (DOCS / "search.json").write_text(json.dumps(content, indent=1) + "\n")
    (DOCS / "search.md").write_text(table(content))


def table(content: dict[str, Any]) -> str:
    """docs/search.md."""
    rows = content["sets"]
    stay = ", ".join(map(str, sorted(PROTECTED - {0, BLOCKS - 1})))
    choices = list(dict.fromkeys(row["choice"] for row in rows))
    lines = [
        "# What the searches find on the embedded model",
        "",
        f"Blocks to drop were chosen on calibration questions: the searches by the answers' likelihood on "
        f"{content['questions']} of them, the two rankings on all. Accuracy is on {rows[0]['samples']:,} test "
        f"questions, exact match, 95 % Wilson intervals; the full model has {content['full_accuracy']:.3f}. The first "
        f"and the last block stay, for the searches also {stay}. A small model of drawn pictures: the numbers are its "
        "own.",
        "",
        "Again: `make nano-data`, `python -m artifacts.nano.strategies`.",
        "",
        "| choice | " + " | ".join(f"{depth} blocks" for depth in content["depths"]) + " |",
        "|---" * (1 + len(content["depths"])) + "|",
    ]
    for choice in choices:
        cells = [
            f"{row['accuracy']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for row in rows if row["choice"] == choice
        ]
        lines.append(f"| {choice} | {' | '.join(cells)} |")
    lines += ["", "| choice | dropped for " + " | ".join(map(str, content["depths"])) + " |"]
    lines += ["|---" * (1 + len(content["depths"])) + "|"]
    for choice in choices:
        dropped = [" ".join(map(str, row["dropped"])) for row in rows if row["choice"] == choice]
        lines.append(f"| {choice} | {' | '.join(dropped)} |")
    lines += [
        "",
        "## What the searches took, and the loss they reached on their own questions",
        "",
        f"Nats per answer token; the full model has {content['searches']['exact']['full_loss']:.4f}. Exact is the "
        "least there is, which on so few questions need not be the best on others.",
        "",
        "| search | sets | block evaluations per picture | one by one | "
        + " | ".join(f"loss at {depth}" for depth in content["depths"])
        + " |",
        "|---" * (4 + len(content["depths"])) + "|",
    ]
    for name, found in content["searches"].items():
        losses = " | ".join(f"{found['loss'][str(depth)]:.4f}" for depth in content["depths"])
        lines.append(
            f"| {name} | {found['sets']:,} | {found['block_evaluations']:,} | {found['naive_block_evaluations']:,} | "
            f"{losses} |"
        )
    lines += [
        "",
        "## Which metric ranks blocks as the accuracy drop does",
        "",
        "Spearman's rank correlation with the accuracy drop, all 16 blocks, all calibration questions.",
        "",
        "| metric | Spearman | |",
        "|---|---|---|",
        *(f"| {row['metric']} | {row['spearman']:.3f} | {row['band']} |" for row in content["metrics"]),
        "",
        "## Experts per block",
        "",
        f"A mean of {content['widths']['mean_k']} experts per token, on the same {content['questions']} questions: "
        "rise of the loss over the full model, nats per answer token.",
        "",
        "| | k per block | predicted | measured | ± |",
        "|---|---|---|---|---|",
    ]
    for row in content["widths"]["allocation"]:
        ks = ",".join(map(str, row["k"]))
        error = "" if row["stderr"] is None else f"{row['stderr']:.4f}"
        lines.append(f"| {row['name']} | {ks} | {row['predicted']:+.4f} | {row['increase']:+.4f} | {error} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
