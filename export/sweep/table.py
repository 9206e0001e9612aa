"""`sweep.json`: every setting of a grid with what was measured of it. Written by `sweep`; `pick` and `report` read it.

Times are milliseconds, sizes bytes, accuracies 0 to 1. What wasn't measured is None or absent, never estimated.
No torch, no numpy.
"""

import json
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from export.cost.work import Cost as Cost
from export.cost.work import Work as Work
from export.cost.work import Workload as Workload
from transform.errors import KnobError, VerificationError
from transform.strict_json import Record, read_json

FILE = "sweep.json"
SCHEMA = 1
Made = TypeVar("Made")


@dataclass(frozen=True)
class Share:
    """An accuracy: its mean, standard error and 95 % interval over `samples` questions; None: too few to tell."""

    accuracy: float
    stderr: float | None
    interval: tuple[float, float] | None
    samples: int


@dataclass(frozen=True)
class Drop:
    """What a setting loses against the full model on the same questions, paired; above 0 is worse."""

    mean: float
    stderr: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Quality:
    """`by_task`: the same per kind of question. `drop`: against the sweep's full setting."""

    total: Share
    by_task: Mapping[str, Share]
    drop: Drop


@dataclass(frozen=True)
class Latency:
    """Medians of one workload, measured with onnxruntime on the table's machine. `vision_ms`: cutting the picture and
    its features, None without one; `decode_ms`: one token; `total_ms`: all of the workload; `spread_ms`: least and most
    of the totals; `peak_bytes`: of the process that had this decoder and the vision graph open."""

    vision_ms: float | None
    prefill_ms: float
    decode_ms: float
    total_ms: float
    spread_ms: tuple[float, float]
    peak_bytes: int | None


@dataclass(frozen=True)
class Point:
    """A setting. `k`: as users write it; `top_k`: one per kept block; `tokens`: nominal, None as the source has it.
    `command` makes the variant. `errors`: what failed, by part (quality, latency); the other parts count."""

    name: str  # k4-b12-t432-int4
    k: str
    top_k: tuple[int, ...]
    keep_blocks: tuple[int, ...]
    tokens: int | None
    form: str
    dtype: str
    command: str
    cost: Cost
    quality: Quality | None = None
    latency: Mapping[str, Latency] = field(default_factory=dict)  # per workload
    errors: Mapping[str, str] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """How many blocks stay."""
        return len(self.keep_blocks)


@dataclass(frozen=True)
class Source:
    """The model that all settings come from. `path`: absolute, or a hub id."""

    name: str
    path: str
    model_type: str
    digest: str
    layers: int
    top_k: tuple[int, ...]
    experts: int


@dataclass(frozen=True)
class Data:
    """The questions. `task`: how an answer is graded."""

    name: str
    digest: str
    samples: int
    pictures: int
    task: str


@dataclass(frozen=True)
class Table:
    """A sweep. `full`: the name of the setting that relative constraints refer to, all knobs as the source has them;
    `machine`: where latencies were measured (`machine_facts`), None: they weren't; `chosen_by`: what chose blocks."""

    source: Source
    data: Data | None
    workloads: Mapping[str, Workload]
    grid: str
    chosen_by: str
    full: str
    machine: Mapping[str, object] | None
    points: tuple[Point, ...]

    def point(self, name: str) -> Point:
        """The setting of this name; raises KnobError where there is none."""
        for point in self.points:
            if point.name == name:
                return point
        raise KnobError(
            f"the sweep has no setting {name[:80]!r}. Choose one of {', '.join(p.name for p in self.points)}."
        )

    def as_dict(self) -> Record:
        """For JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def parse(cls, record: Record) -> "Table":
        """What `as_dict` gave, every value of its type; raises VerificationError."""
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise VerificationError(f"{FILE} must be a sweep of schema {SCHEMA}. Run the sweep again.")
        table = _made(cls, {key: value for key, value in record.items() if key != "schema"}, FILE)
        names = [point.name for point in table.points]
        if len(set(names)) < len(names) or table.full not in names:
            raise VerificationError(
                f"{FILE}: settings must have different names, {table.full!r} among them. Run the sweep again."
            )
        return table


def read_table(directory: Path) -> Table:
    """The sweep in `directory`; KnobError where there is none, VerificationError where its record is damaged."""
    if not (directory / FILE).is_file():
        raise KnobError(f"{directory} must hold {FILE}, it has none. Give the --out of a finished `knobcast sweep`.")
    return Table.parse(read_json(directory / FILE))


def table_text(table: Table) -> str:
    """The file's content."""
    return json.dumps(table.as_dict(), indent=1, ensure_ascii=False) + "\n"


def _made(kind: type[Made], value: Any, where: str) -> Made:
    """`value` as `kind` wants it; lists become tuples, objects records. VerificationError names the place."""
    found: Any = _parsed(kind, value, where)
    return found


def _parsed(kind: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _parsed(next(one for one in inner if one is not type(None)), value, where)
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict) or value.keys() - {f.name for f in fields(kind)}:
            raise _wrong(where, "an object with the keys of this schema", value)
        hints = get_type_hints(kind)
        missing = [f.name for f in fields(kind) if f.name not in value]
        if missing:
            raise _wrong(where, f"an object with {missing[0]!r}", value)
        return kind(**{name: _parsed(hints[name], value[name], f"{where}: {name}") for name in value})
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, "a list", value)
        if inner[-1] is not Ellipsis and len(inner) != len(value):
            raise _wrong(where, f"a list of {len(inner)}", value)
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(
            _parsed(one, item, f"{where}[{n}]") for n, (one, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is not None:  # a mapping, of strings
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        return {key: _parsed(inner[1], item, f"{where}: {key}") for key, item in value.items()}
    if kind is object:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # True is no number
        raise _wrong(where, {int: "a whole number", float: "a number", str: "text"}.get(kind, kind.__name__), value)
    return value


def _wrong(where: str, rule: str, value: object) -> VerificationError:
    return VerificationError(f"{where} must be {rule}, got {str(value)[:40]}. Run the sweep again.")
