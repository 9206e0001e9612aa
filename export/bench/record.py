"""What is measured, as workers send it and as the record has it: times in seconds, memory in bytes, None: unknown."""

from collections.abc import Sequence
from typing import Required, TypedDict

import numpy as np

from export.bench.machine import MachineFacts
from export.bench.workload import WorkloadFacts


class Memory(TypedDict):
    """Of a process."""

    peak_bytes: int | None
    anonymous_bytes: int | None
    device_bytes: int | None


class Loaded(TypedDict):
    """`load`."""

    seconds: float
    memory_before: Memory
    memory: Memory


class Timed(TypedDict):
    """One prompt; `vision` None: the contestant sees no picture."""

    vision: float | None
    prefill: float
    steps: list[float]


class Ran(Timed):
    """`run`."""

    tokens: list[int]
    memory: Memory


class Spread(TypedDict):
    """Of all runs."""

    median: float
    least: float
    most: float


def spread(seconds: Sequence[float]) -> Spread:
    """Median, least and most."""
    return {"median": round(float(np.median(seconds)), 9), "least": min(seconds), "most": max(seconds)}


class Cut(TypedDict):
    """How the picture was cut for all of them, and how long one cut took, from pixels on."""

    by: str  # "graph" or "python"
    seconds: Spread


class Steps(TypedDict):
    """Of all steps of all runs."""

    steps: int
    mean: float
    p50: float
    p95: float


class MemoryFacts(TypedDict):
    """Of a contestant; peak and device behind its last run."""

    peak_bytes: int | None
    anonymous_bytes_before_load: int | None
    anonymous_bytes_at_load: int | None
    device_bytes: int | None


class ContestantRecord(TypedDict, total=False):
    """One contestant: the reason, or what was measured."""

    name: Required[str]
    what: Required[str]
    status: Required[str]
    reason: str | None
    prepare_seconds: float | None
    load_seconds: float
    vision_seconds: Spread | None
    prefill_seconds: Spread
    step_seconds: Steps
    tokens_per_second: float
    memory: MemoryFacts
    repeatable: bool
    tokens: list[int]
    runs: list[Timed]
    ratios: dict[str, float | None]
    first_difference: int | None


class Setting(TypedDict):
    """What is measured, known before it is."""

    schema: int
    directory: str
    member: str | None
    form: str
    activations: str | None  # what quantised matrices are multiplied with; None: there are none
    model_type: str
    layers: int
    top_k: list[int]
    provider: str


class BenchRecord(Setting):
    """All of it."""

    machine: MachineFacts
    workload: WorkloadFacts
    preprocess: Cut | None
    runs: int
    warmup: int
    baseline: str | None
    tokens_equal: bool | None
    contestants: list[ContestantRecord]
