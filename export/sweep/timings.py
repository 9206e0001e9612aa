"""Latencies that `sweep` or `bench` measured -> settings to calibrate a device by. From headers and records alone."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from export.cost.calibrate import Measured
from export.cost.count import Tokens, count, count_tokens
from export.run.family_file import read_family
from export.sweep.table import FILE, Table, read_table
from export.sweep.variant import plan_on, swept_source
from transform.errors import KnobError
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.strict_json import Record, read_json
from transform.strict_record import parse_record

BENCH = 1  # the schema of `bench`'s records
GRAPHS = "graphs"  # the contestant that is the variant itself


@dataclass(frozen=True)
class Timings:
    """`machine`: the processor or GPU that all were measured on; `threads`: that onnxruntime had."""

    points: tuple[Measured, ...]
    machine: str
    threads: int
    provider: str


def read_timings(paths: Sequence[Path], model: str | None = None) -> Timings:
    """All settings of sweeps' directories and bench records, which must be of one machine; raises KnobError.

    model: where a sweep's model is now, None: where the sweep found it.
    """
    found = [_of_sweep(path, model) if path.is_dir() else _of_bench(path) for path in paths]
    facts = {(each.machine, each.threads, each.provider) for each in found}
    if len(facts) > 1:
        said = "; ".join(f"{machine}, {threads} threads, {provider}" for machine, threads, provider in sorted(facts))
        raise KnobError(f"one device is fitted to one machine's measurements, got those of {said}. Give those of one.")
    machine, threads, provider = facts.pop()
    return Timings(tuple(point for each in found for point in each.points), machine, threads, provider)


def _of_sweep(directory: Path, model: str | None) -> Timings:
    table = read_table(directory)
    if table.machine is None or not any(point.latency for point in table.points):
        raise KnobError(f"{directory / FILE} must hold latencies, it has none. Run the sweep without --no-latency.")
    source = swept_source(table, model)
    points = []
    for point in table.points:
        plan = plan_on(source, point)
        for name, latency in point.latency.items():
            seconds = {"prefill": latency.prefill_ms / 1e3, "decode": latency.decode_ms / 1e3}
            if latency.vision_ms is not None:
                seconds["vision"] = latency.vision_ms / 1e3
            counted = count(plan, table.workloads[name])
            points.append(Measured(f"{point.name}/{name}", counted, plan.form, seconds, latency.peak_bytes))
    return Timings(tuple(points), *_machine(table))


def _machine(table: Table) -> tuple[str, int, str]:
    machine = table.machine or {}
    gpu, threads = machine.get("gpu"), machine.get("threads")
    name = str(gpu or machine.get("cpu") or "a machine")
    return name, threads if isinstance(threads, int) else 0, "cuda" if gpu else "cpu"


@dataclass(frozen=True)
class _Asked:
    crops: int
    image_tokens: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class _Took:
    vision: float | None
    prefill: float
    step: float
    peak: int | None


@dataclass(frozen=True)
class _Where:
    name: str
    threads: int


def _of_bench(path: Path) -> Timings:
    record = read_json(path, way_out="Give a sweep's directory or a record of `knobcast bench --out`.")
    contestants = record.get("contestants")
    graphs = contestants[0] if isinstance(contestants, list) and contestants else None
    if record.get("schema") != BENCH or not isinstance(graphs, dict) or graphs.get("status") != "measured":
        raise KnobError(
            f"{path} must be a sweep's directory or a record of `knobcast bench --out` whose graphs were measured."
        )
    again = "Run the bench again."
    asked = parse_record(_Asked, _asked(record.get("workload")), f"{path}: workload", again)
    if min(asked.crops, asked.image_tokens) < 0 or min(asked.prompt_tokens, asked.new_tokens) < 1:
        raise KnobError(f"{path}: a workload has whole numbers from 1, and crops from 0, got {asked}. {again}")
    took = parse_record(_Took, _times(graphs), f"{path}: {GRAPHS}", again)
    where = parse_record(_Where, _named(record.get("machine")), f"{path}: machine", again)
    directory = Path(str(record.get("directory")))
    source = read_checkpoint(directory)
    member = record.get("member")
    keep = None if member is None else read_family(directory).member(str(member)).blocks_kept
    raw = record.get("top_k")
    top_k = tuple(k for k in raw if isinstance(k, int)) if isinstance(raw, list) else None
    plan = make_plan(source, Knobs(top_k, keep))
    tokens = Tokens(asked.crops, asked.image_tokens, asked.prompt_tokens, asked.new_tokens)
    seconds = {"prefill": took.prefill, "decode": took.step} | ({} if took.vision is None else {"vision": took.vision})
    point = Measured(f"{plan.name}", count_tokens(plan, tokens), plan.form, seconds, took.peak)
    return Timings((point,), where.name, where.threads, str(record.get("provider")))


def _asked(value: object) -> Record:
    known = [field.name for field in fields(_Asked)]
    return {key: value[key] for key in known if key in value} if isinstance(value, dict) else {}


def _times(graphs: Record) -> Record:
    def inner(key: str, name: str) -> object:
        value = graphs.get(key)
        return value.get(name) if isinstance(value, dict) else None

    return {
        "vision": inner("vision_seconds", "median"),
        "prefill": inner("prefill_seconds", "median"),
        "step": inner("step_seconds", "p50"),
        "peak": inner("memory", "peak_bytes"),
    }


def _named(machine: object) -> Record:
    if not isinstance(machine, dict):
        return {}
    return {"name": machine.get("gpu") or machine.get("cpu"), "threads": machine.get("threads")}
