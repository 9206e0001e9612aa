"""What every setting takes of time and memory: from the family's own graphs, a process per decoder and workload.

The vision part depends on neither k nor blocks: it is timed once per weights, budget and picture size, and all settings
of that budget share it. Jobs run one after the other on this machine, for two at once would time each other.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TypedDict, cast

from export.bench.machine import machine_facts
from export.bench.process import without_folders
from export.files.integrity import sha256_file
from export.run.io_file import policy_in
from export.run.picture import GRAPH
from export.run.providers import provider_options
from export.run.session import check_loads
from export.sweep.clock import Ask, Request
from export.sweep.settings import Planned
from export.sweep.table import Latency, Workload
from importance.jobs import JobsError, run_jobs
from transform.errors import KnobcastError
from transform.forms import Form
from transform.scratch import scratch
from transform.strict_json import Record

ROOT = Path(__file__).parent.parent.parent
TIMEOUT = 3600.0  # seconds of one process
TAIL = 300  # characters of what a dead process said


class LatencyError(KnobcastError):
    """A decoder that could not be timed; the message is the reason that the table gives."""


class Ran(TypedDict):
    """One answer, in seconds."""

    prefill: float
    steps: list[float]


class Asked(TypedDict):
    """A workload at a budget in one decoder."""

    peak_bytes: int | None
    runs: list[Ran]


@dataclass(frozen=True)
class Clock:
    """How latencies are taken: `provider` a word of --provider."""

    provider: str
    threads: int
    runs: int

    def machine(self) -> Mapping[str, object]:
        """What the numbers depend on."""
        return dict(machine_facts(self.threads, self.provider != "cpu"))

    def check(self, form: Form) -> None:
        """Raise RunError where the provider doesn't load on this machine."""
        check_loads([(name, options) for name, options in provider_options(form, static=False)[self.provider]])


def asks_of(settings: Iterable[Planned], workloads: Mapping[str, Workload]) -> list[Ask]:
    """Every workload at every budget of some settings, once; named `BUDGET/WORKLOAD`."""
    found: dict[str, Ask] = {}
    for setting in settings:
        vision = setting.plan.vision
        policy = policy_in(vision.as_dict()) if vision else policy_in({})
        for name, work in workloads.items():
            key = ask_name(setting, name)
            found[key] = Ask(key, work.image, work.prompt, work.new, policy)
    return list(found.values())


def ask_name(setting: Planned, workload: str) -> str:
    """Under which name a setting's workload is asked."""
    return f"{setting.tokens or 'stock'}/{workload}"


def time_vision(directory: Path, asks: Sequence[Ask], clock: Clock, store: Path) -> dict[str, list[float]]:
    """Seconds of each run per ask with a picture, over a family's vision graph; raises LatencyError."""
    seen = [ask for ask in asks if ask.image is not None]
    if not seen:
        return {}
    spec = _spec(directory, None, seen, clock)
    spec["preprocess"] = (directory / GRAPH).is_file()
    return cast("dict[str, list[float]]", _job(directory, spec, store)["asks"])


def time_decoder(directory: Path, graph: str, ask: Ask, clock: Clock, store: Path) -> Asked:
    """What one decoder took for one workload at one budget; raises LatencyError."""
    return cast("Asked", _job(directory, _spec(directory, graph, [ask], clock), store))


def _job(directory: Path, spec: Record, store: Path) -> Record:
    try:
        return run_jobs(partial(timed, directory.resolve()), [spec], store, retries=0)[0]
    except JobsError as error:
        raise LatencyError(error.failed[0][1]) from error


def timed(directory: Path, spec: Record) -> Record:
    """The job over the family in `directory`: a process is started, asked once, and its answer read."""
    request = replace(Request.from_json(json.dumps(spec["request"])), directory=str(directory))
    with scratch("sweep") as folder:
        if spec.get("preprocess"):
            cutters = _write_cutters(directory, request.asks, folder)
            asks = [replace(ask, preprocess=str(cutters[json.dumps(ask.policy)])) for ask in request.asks]
            request = replace(request, asks=asks)
        return _answer(request)


def latency_of(asked: Asked, vision: Sequence[float] | None) -> Latency:
    """Medians in milliseconds. The least and most of the totals pair the runs of both parts by their order."""
    runs = asked["runs"]
    seen = None if vision is None else statistics.median(vision)
    prefill = statistics.median(run["prefill"] for run in runs)
    decode = statistics.median(step for run in runs for step in run["steps"])
    steps = len(runs[0]["steps"])
    each = [(vision[n] if vision else 0.0) + run["prefill"] + sum(run["steps"]) for n, run in enumerate(runs)]
    total = (seen or 0.0) + prefill + steps * decode
    return Latency(
        None if seen is None else _ms(seen), _ms(prefill), _ms(decode), _ms(total),
        (_ms(min(each)), _ms(max(each))), asked["peak_bytes"],
    )  # fmt: skip


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 4)


def _spec(directory: Path, graph: str | None, asks: Sequence[Ask], clock: Clock) -> Record:
    """What is asked and all that its result depends on: the graphs' bytes, the weights', the machine. Of the directory
    its name alone: a sweep's folder may be moved, and be named from elsewhere."""
    request = Request(directory.name, graph, clock.provider, clock.threads, clock.runs, asks)
    machine = {name: value for name, value in clock.machine().items() if name != "load"}
    names = [name for name in ("vision.onnx", "embedding.onnx", graph) if name is not None]
    files = {name: sha256_file(directory / name) for name in names if (directory / name).is_file()}
    weights = {path.name: path.stat().st_size for path in sorted(directory.glob("model*.safetensors"))}
    return {"kind": "latency", "request": asdict(request), "files": files, "weights": weights, "machine": machine}


def _write_cutters(directory: Path, asks: Sequence[Ask], folder: Path) -> dict[str, Path]:
    """A graph that cuts pictures per policy, as a variant of that budget has it."""
    from export.graph.preprocess import preprocess_graph
    from transform.read import read_checkpoint
    from transform.special_tokens import image_token_ids

    ids = image_token_ids(read_checkpoint(directory), directory)
    found: dict[str, Path] = {}
    for ask in asks:
        key = json.dumps(ask.policy)
        if key not in found:
            found[key] = folder / f"cut-{len(found)}.onnx"
            preprocess_graph(ids, **ask.policy).write(found[key])
    return found


def _answer(request: Request) -> Record:
    threads = str(request.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "export.sweep.clock", request.to_json()]
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        code = _waited(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=said, stderr=errors))
        text, tail = (_read(file) for file in (said, errors))
    if code != 0 or not text.strip():
        shown = without_folders(" ".join(tail.split())[-TAIL:])
        raise LatencyError(f"its process ended with code {code}: {shown or 'without a word'}")
    found: Record = json.loads(text)
    if "error" in found:
        raise LatencyError(without_folders(str(found["error"])))
    return found


def _waited(process: "subprocess.Popen[bytes]") -> int:
    """The exit code of a process that is ended with us, whatever ends us: it reads our end of its stdin."""
    try:
        return process.wait(TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise LatencyError(
            f"a decoder must be timed within {TIMEOUT:g} seconds, it wasn't. Give fewer --runs or shorter workloads."
        ) from error
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
