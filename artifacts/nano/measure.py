"""Accuracy of the nano model at many knob settings, several at a time, one process and thread each.

A job is (split, knobs); its result is kept in a file, so that a stopped measurement goes on.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track

from artifacts.nano import data
from artifacts.nano.build import CONFIG, TARGET

BLOCKS, TOP_K = CONFIG["n_layers"], CONFIG["moe_top_k"]


class Job(NamedTuple):
    """One measurement: k experts, without the blocks in `drop`, at a vision budget (None: the released tiling)."""

    split: str = "test"
    k: int = TOP_K
    drop: tuple[int, ...] = ()
    tokens: int | None = None

    @property
    def name(self) -> str:
        """For a table."""
        parts = [f"k={self.k}", f"blocks={BLOCKS - len(self.drop)}"]
        return " ".join([*parts, f"tokens={self.tokens}"] if self.tokens else parts)


class Result(NamedTuple):
    """What `evaluate` found; `scores` in the order of the samples."""

    accuracy: float
    stderr: float
    samples: int
    by_kind: dict[str, dict[str, Any]]
    scores: list[float]


def measure(jobs: Iterable[Job], store: Path) -> dict[Job, Result]:
    """All results; those in `store` for these weights and these questions are taken from there."""
    wanted = sorted(set(jobs), key=lambda job: (job.split, job.tokens or 0, job.k, job.drop))
    folder = store / _identity()
    folder.mkdir(parents=True, exist_ok=True)
    missing = [job for job in wanted if not _file(folder, job).exists()]
    with ProcessPoolExecutor(os.cpu_count(), initializer=_one_thread) as pool:
        for job, result in zip(missing, track(pool.map(_run, missing), "settings", total=len(missing)), strict=True):
            staged = _file(folder, job).with_suffix(".tmp")
            staged.write_text(json.dumps(result._asdict()))
            staged.replace(_file(folder, job))
    return {job: Result(**json.loads(_file(folder, job).read_text())) for job in wanted}


def _file(folder: Path, job: Job) -> Path:
    dropped = "-".join(map(str, job.drop)) or "none"
    return folder / f"{job.split}-k{job.k}-without-{dropped}-t{job.tokens or 'stock'}.json"


def _identity() -> str:
    """Digest of weights and questions, for names of folders."""
    files = [*sorted(TARGET.glob("*.safetensors")), *sorted(data.TARGET.glob("*.jsonl"))]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:16]


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@cache
def _model() -> Any:
    from transform.load import load_model

    return load_model(TARGET)


@cache
def _prepared(split: str, tokens: int | None) -> Any:
    from importance.evaluate import prepare
    from importance.prompts import load_processor
    from importance.readers.read import read_samples
    from transform.read import read_checkpoint

    samples = read_samples(data.TARGET / f"{split}.jsonl")
    return prepare(_model(), load_processor(read_checkpoint(TARGET)), samples, tokens)


def _run(job: Job) -> Result:
    from importance.evaluate import evaluate
    from transform.runtime import BlockMaskWrapper, moe_top_k

    model, prepared = _model(), _prepared(job.split, job.tokens)
    with ExitStack() as stack:
        if job.k != TOP_K:
            stack.enter_context(moe_top_k(model, job.k))
        if job.drop:
            stack.enter_context(BlockMaskWrapper(model, [i not in job.drop for i in range(BLOCKS)]))
        found = evaluate(model, prepared, max_new_tokens=4)
    return Result(**found.as_dict(), scores=list(found.scores))


def paired(full: Result, other: Result) -> Iterator[float]:
    """What each question loses."""
    return (a - b for a, b in zip(full.scores, other.scores, strict=True))
