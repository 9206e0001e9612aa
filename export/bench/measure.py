"""Rounds: load all, warm up, then A B C A B C …; from the times to the record that is printed. No torch.

Times are per step, and N tokens make N - 1 steps: the first comes with the prefill.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import numpy as np

from export.bench.contestants import GRAPHS, PREPARES, WHAT
from export.bench.job import BenchJob
from export.bench.process import Contestant, ContestantError
from export.bench.record import ContestantRecord, Loaded, Ran, Timed, spread
from export.bench.workload import Workload
from transform.progress import Progress, Say
from transform.scratch import scratch

SETTLE = 0.05  # seconds between turns: the threads of the last one wait busily for a while
Advance = Progress


@dataclass(frozen=True)
class Bench:
    """What to measure. `job` is what all contestants are started with; `reasons` says who can't run."""

    job: BenchJob
    workload: Workload
    names: Sequence[str]  # the graphs first, then the baselines in order
    reasons: Mapping[str, str]
    runs: int
    warmup: int
    timeout: float

    @property
    def turns(self) -> int:
        """Loads and runs in all."""
        return (len(self.names) - len(self.reasons)) * (1 + self.warmup + self.runs)


@dataclass
class Entry:
    """One contestant's measurements; `reason` is set when it failed or could not start."""

    name: str
    status: str = "measured"
    reason: str | None = None
    prepared: float | None = None
    loaded: Loaded | None = None
    runs: list[Ran] = field(default_factory=list)
    process: Contestant | None = None


def measure(bench: Bench, say: Say, advance: Advance) -> list[ContestantRecord]:
    """One record per contestant, in the order of `names`."""
    entries = [Entry(name) for name in bench.names]
    with scratch("bench") as folder:
        path = folder / "workload.npz"
        bench.workload.save(path)
        job = replace(bench.job, workload=str(path), scratch=str(folder))
        for entry in entries:
            if entry.name in bench.reasons:
                entry.status, entry.reason = "unavailable", bench.reasons[entry.name]
        try:
            for entry in entries:
                _turn(entry, f"load {entry.name}", partial(_load, job, bench.timeout), say, advance)
            for r in range(bench.warmup + bench.runs):
                counted = r >= bench.warmup
                label = f"run {r - bench.warmup + 1} of {bench.runs}" if counted else "warm-up"
                for entry in entries:
                    _turn(entry, f"{label}: {entry.name}", partial(_run, counted), say, advance)
        finally:
            for entry in entries:
                if entry.process is not None:
                    entry.process.close()
    return records(entries)


def _turn(entry: Entry, label: str, act: Callable[[Entry], None], say: Say, advance: Advance) -> None:
    if entry.status == "unavailable":
        return
    if entry.status == "measured":
        say(label)
        try:
            act(entry)
        except ContestantError as error:
            entry.status, entry.reason = "failed", str(error)
        time.sleep(SETTLE)
    advance(1)


def _load(job: BenchJob, timeout: float, entry: Entry) -> None:
    given = replace(job, name=entry.name)
    if entry.name in PREPARES:
        first = Contestant(given, timeout)
        try:
            entry.prepared = first.ask("prepare")["seconds"]
        finally:
            first.close()
    entry.process = Contestant(given, timeout)
    entry.loaded = cast("Loaded", entry.process.ask("load"))


def _run(counted: bool, entry: Entry) -> None:
    assert entry.process is not None
    found = cast("Ran", entry.process.ask("run"))
    if counted:
        entry.runs.append(found)


def records(entries: Sequence[Entry]) -> list[ContestantRecord]:
    """The entries as they are printed, compared with the first baseline and with the graphs' tokens."""
    found = {entry.name: _record(entry) for entry in entries}
    measured = [name for name in found if found[name]["status"] == "measured"]
    baseline = first_baseline(list(found.values()))
    for name in measured:
        record = found[name]
        if baseline is not None:
            record["ratios"] = _ratios(record, found[baseline])
        if GRAPHS in measured:
            record["first_difference"] = first_difference(found[GRAPHS]["tokens"], record["tokens"])
    return list(found.values())


def first_baseline(found: Sequence[ContestantRecord]) -> str | None:
    """The first contestant that was measured, the graphs aside."""
    return next((str(r["name"]) for r in found if r["status"] == "measured" and r["name"] != GRAPHS), None)


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The step at which two answers part; 0 is the prefill, None means never."""
    return next((j for j, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)


def tokens_equal(found: Sequence[ContestantRecord]) -> bool | None:
    """Whether all made the graphs' tokens in every run; None where there is nobody to compare with."""
    measured = [r for r in found if r["status"] == "measured"]
    if len(measured) < 2 or measured[0]["name"] != GRAPHS:
        return None
    return all(r["first_difference"] is None and r["repeatable"] for r in measured)


def _record(entry: Entry) -> ContestantRecord:
    record: ContestantRecord = {"name": entry.name, "what": WHAT[entry.name], "status": entry.status}
    if entry.status != "measured" or entry.loaded is None:
        record["reason"] = entry.reason
        return record
    runs: list[Timed] = [
        {
            "vision": _rounded(run["vision"]),
            "prefill": round(run["prefill"], 9),
            "steps": [round(second, 9) for second in run["steps"]],
        }
        for run in entry.runs
    ]
    tokens = entry.runs[0]["tokens"]
    steps = [second for run in runs for second in run["steps"]]
    seen = [run["vision"] for run in runs if run["vision"] is not None]
    mean = float(np.mean(steps))
    memory, before = entry.runs[-1]["memory"], entry.loaded["memory_before"]
    measured: ContestantRecord = {
        **record,
        "prepare_seconds": _rounded(entry.prepared),
        "load_seconds": round(entry.loaded["seconds"], 9),
        "vision_seconds": spread(seen) if seen else None,
        "prefill_seconds": spread([run["prefill"] for run in runs]),
        "step_seconds": {
            "steps": len(steps),
            "mean": round(mean, 9),
            "p50": round(float(np.percentile(steps, 50)), 9),
            "p95": round(float(np.percentile(steps, 95)), 9),
        },
        "tokens_per_second": round(1 / mean, 3),
        "memory": {
            "peak_bytes": memory["peak_bytes"],
            "anonymous_bytes_before_load": before["anonymous_bytes"],
            "anonymous_bytes_at_load": entry.loaded["memory"]["anonymous_bytes"],
            "device_bytes": memory["device_bytes"],
        },
        "repeatable": all(run["tokens"] == tokens for run in entry.runs),
        "tokens": tokens,
        "runs": runs,
    }
    return measured


def _ratios(record: ContestantRecord, baseline: ContestantRecord) -> dict[str, float | None]:
    """Median time over the baseline's median time: below 1 is faster."""
    ours, theirs = record["vision_seconds"], baseline["vision_seconds"]
    return {
        "vision": round(ours["median"] / theirs["median"], 4) if ours and theirs else None,
        "prefill": round(record["prefill_seconds"]["median"] / baseline["prefill_seconds"]["median"], 4),
        "step": round(record["step_seconds"]["p50"] / baseline["step_seconds"]["p50"], 4),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 9)
