"""What scoring, searching and measuring keep: results of jobs, sets, workloads; and tables of samples."""

import io
from importlib.util import find_spec
from pathlib import Path

from export.sweep.grid import read_grid
from export.sweep.workloads import parse_workloads
from importance.choose import choose_blocks
from importance.jobs import damaged_results, run_jobs
from importance.readers.read import read_samples
from importance.scores import Scores
from importance.sets import write_sets
from tests.fuzz.mutate import in_bytes, in_json
from tests.fuzz.records import in_text
from tests.fuzz.target import Target, put
from tests.support.pictures import noise_png
from transform.checkpoint import Checkpoint

WORKLOADS = b"""[grid]
k = [1, 2]
blocks = [2, 3]

[workload.qa]
image = "640x480"
prompt = 32
new = 8

[workload.long]
prompt = 900
new = 2
"""


class WrongResultError(Exception):
    """A kept result that isn't the job's was taken for it."""


def measurement_targets(folder: Path, checkpoint: Checkpoint) -> tuple[Target, ...]:
    """`checkpoint`: whose blocks sets choose from."""
    folder.mkdir()
    store = folder / "jobs"
    run_jobs(work, [JOB], store)
    kept = next(store.glob("*.json"))
    sets = _sets(folder / "sets.json", checkpoint)
    return (
        Target("job's result", (kept.read_bytes(),), in_json, lambda data: _resumed(store, put(kept, data))),
        Target("sets", (sets,), in_json,
               lambda data: choose_blocks(checkpoint, blocks=2, scores=str(put(folder / "sets.json", data)))),
        Target("workloads", (WORKLOADS,), in_text, lambda data: _workloads(put(folder / "grid.toml", data))),
        *_tables(folder),
    )  # fmt: skip


JOB = {"block": 3, "samples": ["a", "b"], "digest": "0" * 64}


def work(job: dict[str, object]) -> dict[str, object]:
    """A result of all kinds of values."""
    return {"of": job["block"], "losses": [0.5, 1e-9, 3], "note": "ü", "nested": {"a": [None, True]}}


def _resumed(store: Path, kept: Path) -> None:
    """A damaged result is named and computed again; a changed one never passes for the job's."""
    damaged = damaged_results(store)
    (found,) = run_jobs(work, [JOB], store)
    if found != work(dict(JOB)):
        raise WrongResultError(str(found))
    if damaged_results(store) or damaged not in ([], [kept.name]):
        raise WrongResultError("a damaged result stays")


def _sets(file: Path, checkpoint: Checkpoint) -> bytes:
    """As a search writes them."""
    layers = checkpoint.settings.layers
    scores = Scores({n: n / 10 for n in range(layers)}, unit="nats", stderr={1: 0.1}, samples=3)
    loss = {"increase": 0.1, "stderr": None, "interval": [0.0, 0.2]}
    notes = {"strategy": "exact", "samples": 3, "losses": {"2": loss, "1": loss}, "nested": True}
    write_sets(file, layers, {2: [1], 1: [0, 1]}, scores=scores, provenance="drawn", noise="none", notes=notes)
    return file.read_bytes()


def _workloads(file: Path) -> object:
    grid = read_grid(str(file))
    return [parse_workloads(grid.workload, sees, "grid.toml") for sees in (True,)]


def _tables(folder: Path) -> tuple[Target, ...]:
    """Where the package of [eval] is installed."""
    if find_spec("pyarrow") is None:
        return ()
    import pyarrow
    from pyarrow import parquet

    picture = {"bytes": noise_png(0), "path": "a.png"}
    rows = [
        {"id": str(n), "image": picture, "question": "What is it?", "answers": ["net", "mesh"], "choices": ["a", "b"]}
        for n in range(3)
    ]
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out, compression="none")

    def read(data: bytes) -> object:
        return [sample.prompt for sample in read_samples(put(folder / "table.parquet", data))]

    return (Target("parquet", (out.getvalue(),), in_bytes, read),)
