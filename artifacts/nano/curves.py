"""Accuracy of the nano model against k, depth and vision tokens: `python -m artifacts.nano.curves`.

Writes docs/nano.json, the table docs/nano.md, the plot docs/nano.svg, and the model's card. Needs the extra [plot].
"""

import json
from pathlib import Path
from typing import Any

from artifacts.nano import card, data
from artifacts.nano.build import TARGET
from artifacts.nano.make import STATE
from artifacts.nano.measure import BLOCKS, TOP_K, Job, Result, measure
from artifacts.nano.pictures import CHANCE
from artifacts.nano.routing import used_experts
from importance import choose_blocks, read_scores
from importance.tasks import wilson

DOCS = Path(__file__).parents[2] / "docs"
TOP_KS, DEPTHS, BUDGETS = (8, 6, 4, 2, 1), (16, 15, 14, 12, 10, 8), (288, 432, 720, 1008, 1440)
TOGETHER = ((4, 14, None), (4, 12, None), (4, 12, 432), (4, 12, 1008), (6, 14, 720), (2, 10, 288))  # k, blocks, tokens


def best(depth: int) -> tuple[int, ...]:
    """The blocks that `--blocks` drops: the least important, the first and the last kept."""
    return tuple(sorted(set(range(BLOCKS)) - set(choose_blocks(BLOCKS, blocks=depth, scores=TARGET / "scores.json"))))


def worst(depth: int) -> tuple[int, ...]:
    """The most important blocks, the first and the last kept."""
    scores = read_scores(TARGET / "scores.json", BLOCKS).values
    middle = sorted(range(1, BLOCKS - 1), key=lambda block: -scores[block])
    return tuple(sorted(middle[: BLOCKS - depth]))


def settings() -> list[tuple[str, Job]]:
    """(curve, job) of everything that is measured."""
    found = [("full", Job())]
    found += [("k", Job(k=k)) for k in TOP_KS]
    found += [("blocks, least important dropped", Job(drop=best(depth))) for depth in DEPTHS]
    found += [("blocks, most important dropped", Job(drop=worst(depth))) for depth in DEPTHS]
    found += [("tokens", Job(tokens=tokens)) for tokens in BUDGETS]
    found += [("together", Job(k=k, drop=best(depth), tokens=tokens)) for k, depth, tokens in TOGETHER]
    return found


def main() -> None:
    """Measure what is missing and write the documents."""
    rows = settings()
    found = measure((job for _, job in rows), STATE)
    used = used_experts()
    content = {
        "samples": found[Job()].samples,
        "chance": CHANCE,
        "experts_used": used,
        "settings": [_row(curve, job, found[job]) for curve, job in rows],
        "commands": ["make nano-data", "make nano", "make nano-curves"],
    }
    (DOCS / "nano.json").write_text(json.dumps(content, indent=1) + "\n")
    scores = json.loads((TARGET / "scores.json").read_text())
    (DOCS / "nano.md").write_text(card.curves(content), encoding="utf-8")
    (TARGET / "README.md").write_text(card.model(content, scores, logs(), sizes()), encoding="utf-8")
    plot(content, DOCS / "nano.svg")


def _row(curve: str, job: Job, result: Result) -> dict[str, Any]:
    low, high = wilson(result.accuracy, result.samples)
    return {
        "curve": curve, "name": job.name, "k": job.k, "blocks": BLOCKS - len(job.drop), "dropped": list(job.drop),
        "tokens": job.tokens, "accuracy": result.accuracy, "low": low, "high": high, "by_kind": result.by_kind,
    }  # fmt: skip


def logs() -> dict[str, dict[str, Any]]:
    """The last line of each stage's log."""
    return {
        stage: json.loads((STATE / f"{stage}.jsonl").read_text().splitlines()[-1]) for stage in ("vision", "language")
    }


def sizes() -> dict[str, int]:
    """Questions of each split."""
    return {split: len((data.TARGET / f"{split}.jsonl").read_text().splitlines()) for split in data.PICTURES}


def plot(content: dict[str, Any], file: Path) -> None:
    """Three panels: k, blocks (both choices), tokens (overall and the detail kind)."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "knobcast"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.8), sharey=True, layout="constrained")

    def line(axis: Any, curve: str, key: str, label: str, kind: str | None = None) -> None:
        rows = [row for row in content["settings"] if row["curve"] == curve]
        values = [row["by_kind"][kind]["accuracy"] if kind else row["accuracy"] for row in rows]
        counts = [row["by_kind"][kind]["samples"] if kind else content["samples"] for row in rows]
        bounds = [wilson(value, n) for value, n in zip(values, counts, strict=True)]
        errors = [
            [max(0.0, v - low) for v, (low, _) in zip(values, bounds, strict=True)],
            [max(0.0, high - v) for v, (_, high) in zip(values, bounds, strict=True)],
        ]
        places = range(len(rows))
        axis.errorbar(places, values, errors, marker="o", markersize=4, capsize=3, label=label)
        axis.set_xticks(places, [str(row[key]) for row in rows])

    line(axes[0], "k", "k", "all kinds")
    line(axes[1], "blocks, least important dropped", "blocks", "least important dropped")
    line(axes[1], "blocks, most important dropped", "blocks", "most important dropped")
    line(axes[2], "tokens", "tokens", "all kinds")
    line(axes[2], "tokens", "tokens", "detail", "detail")
    for axis, name in zip(axes, (f"experts per token (trained: {TOP_K})", "blocks kept", "vision tokens"), strict=True):
        axis.set_xlabel(name)
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower left" if axis is not axes[2] else "lower right")
    axes[0].set_ylabel("accuracy on the test questions")
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
