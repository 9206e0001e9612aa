"""A sweep that nobody ran: 75 settings with plausible numbers, two workloads, three tasks, and answers to match."""

from itertools import product
from pathlib import Path

import numpy as np

from export.sweep.answers import Answers, Samples, write_answers, write_samples
from export.sweep.table import (
    FILE,
    Cost,
    Data,
    Drop,
    Latency,
    Point,
    Quality,
    Share,
    Source,
    Table,
    Work,
    Workload,
    table_text,
)
from transform.arrays import Array

Knobs = tuple[int, int, int]  # k, blocks, tokens
LAYERS, FULL_K, SAMPLES = 16, 8, 120
KS, BLOCKS, TOKENS = (1, 2, 4, 6, 8), (8, 10, 12, 14, 16), (288, 432, 1008)
FORM, DTYPE = "cpu", "source"
TASKS = ("colour", "count", "detail")
WORKLOADS = {"qa": Workload((640, 480), 32, 8), "caption": Workload((1200, 900), 16, 60)}
FEATURES = {288: 288, 432: 384, 1008: 704}


def synthetic_sweep(directory: Path, seed: int = 0) -> Table:
    """Write a finished sweep to `directory` (`sweep.json`, samples, answers) and return its table."""
    draws = np.random.default_rng(seed)
    samples = Samples(
        tuple(f"q{n}" for n in range(SAMPLES)),
        tuple(n // 4 for n in range(SAMPLES)),
        tuple(TASKS[n % len(TASKS)] for n in range(SAMPLES)),
    )
    hardness = draws.uniform(size=SAMPLES)
    scored = {
        knobs: (hardness < _ability(*knobs)).astype(float) for knobs in product(KS, BLOCKS, TOKENS)
    }  # a harder question is missed by all weaker settings: paired differences are small, as in life
    full = (FULL_K, LAYERS, TOKENS[-1])
    table = Table(
        Source("synthetic", "synthetic", "molmo", "0" * 64, LAYERS, (FULL_K,) * LAYERS, 64),
        Data("questions.jsonl", "1" * 64, SAMPLES, SAMPLES // 4, "exact_match"),
        WORKLOADS,
        f"k={','.join(map(str, KS))} blocks={','.join(map(str, BLOCKS))} tokens={','.join(map(str, TOKENS))}",
        "scores.json",
        _name(*full),
        {"cpu": "synthetic", "cores": 2, "threads": 1},
        tuple(_point(knobs, scored[knobs], scored[full], samples, draws) for knobs in scored),
    )
    (directory / FILE).write_text(table_text(table), encoding="utf-8")
    write_samples(directory, samples)
    for knobs, scores in scored.items():
        answers = tuple("red" if score else "blue" for score in scores)
        write_answers(directory, _name(*knobs), Answers(answers, tuple(scores.tolist())))
    return table


def _ability(k: int, blocks: int, tokens: int) -> float:
    return 0.9 - 0.12 / k - 0.004 * (LAYERS - blocks) ** 1.7 - 12.0 / tokens


def _name(k: int, blocks: int, tokens: int) -> str:
    return f"k{k}-b{blocks}-t{tokens}-{FORM}"


def _point(knobs: Knobs, scores: Array, full: Array, samples: Samples, draws: np.random.Generator) -> Point:
    k, blocks, tokens = knobs
    tasks = np.array(samples.tasks)
    drop = full - scores
    error = float(drop.std(ddof=1) / len(drop) ** 0.5)
    return Point(
        _name(*knobs),
        str(k),
        (k,) * blocks,
        (*range(blocks - 1), LAYERS - 1),
        tokens,
        FORM,
        DTYPE,
        f"knobcast export synthetic --k {k} --blocks {blocks} --tokens {tokens}",
        Cost(
            400_000_000 * blocks,
            (17 + 6 * k) * 1_000_000 * blocks,
            800_000_000 * blocks,
            {name: _work(knobs, workload) for name, workload in WORKLOADS.items()},
        ),
        Quality(
            _share(scores),
            {task: _share(scores[tasks == task]) for task in TASKS},
            Drop(float(drop.mean()), error, (float(drop.mean()) - 1.96 * error, float(drop.mean()) + 1.96 * error)),
        ),
        {name: _latency(knobs, workload, draws) for name, workload in WORKLOADS.items()},
    )


def _share(scores: Array) -> Share:
    mean, error = float(scores.mean()), float(scores.std(ddof=1) / len(scores) ** 0.5)
    return Share(mean, error, (max(0.0, mean - 1.96 * error), min(1.0, mean + 1.96 * error)), len(scores))


def _work(knobs: Knobs, workload: Workload) -> Work:
    k, blocks, tokens = knobs
    positions = FEATURES[tokens] + 30 + workload.prompt
    step = 2 * (17 + 6 * k) * 1_000_000 * blocks
    return Work(
        FEATURES[tokens], positions, tokens // 144 * 350_000_000_000, positions * step, step,
        (positions + workload.new) * blocks * 16_384,
    )  # fmt: skip


def _latency(knobs: Knobs, workload: Workload, draws: np.random.Generator) -> Latency:
    k, blocks, tokens = knobs
    noise = draws.uniform(0.97, 1.03, size=3)
    vision = float(tokens / 144 * 55 * noise[0])
    prefill = float((FEATURES[tokens] + 30 + workload.prompt) * blocks * (0.05 + 0.012 * k) * noise[1])
    decode = float(blocks * (1.2 + 0.7 * k) * noise[2])
    total = vision + prefill + decode * (workload.new - 1)
    return Latency(vision, prefill, decode, total, (0.98 * total, 1.05 * total), 900_000_000 * blocks)
