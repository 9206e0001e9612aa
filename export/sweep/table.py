"""`sweep.json`: every setting of a grid with what was measured of it. Written by `sweep`; `pick` and `report` read it.

Times are milliseconds, sizes bytes, accuracies 0 to 1. What wasn't measured is None or absent, never estimated.
No torch, no numpy.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from export.cost.work import Cost as Cost
from export.cost.work import Work as Work
from export.cost.work import Workload as Workload
from export.files.measured import Data as Data
from export.files.measured import Drop as Drop
from export.files.measured import Latency as Latency
from export.files.measured import Measured
from export.files.measured import Quality as Quality
from export.files.measured import Share as Share
from transform.errors import KnobError, VerificationError
from transform.strict_json import Record, read_json
from transform.strict_record import parse_record

FILE = "sweep.json"
SCHEMA = 1
AGAIN = "Run the sweep again."


@dataclass(frozen=True)
class Point:
    """A setting. `k`: as users write it; `top_k`: one per kept block; `tokens`: nominal or a tier, None as the source
    has it. `command` makes the variant. `errors`: what failed, by part (quality, latency); the other parts count."""

    name: str  # k4-b12-t432-int4
    k: str
    top_k: tuple[int, ...]
    keep_blocks: tuple[int, ...]
    tokens: int | str | None
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

    def measured(self, point: Point) -> Measured:
        """What was measured of one of its settings, for that variant's manifest and card."""
        full = self.point(self.full).quality
        return Measured(
            self.data if point.quality else None, point.quality, full.total if full else None,
            {name: self.workloads[name] for name in point.latency}, point.latency,
            self.machine if point.latency else None,
        )  # fmt: skip

    def as_dict(self) -> Record:
        """For JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def parse(cls, record: Record) -> "Table":
        """What `as_dict` gave, every value of its type; raises VerificationError."""
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise VerificationError(f"{FILE} must be a sweep of schema {SCHEMA}. {AGAIN}")
        table = parse_record(cls, {key: value for key, value in record.items() if key != "schema"}, FILE, AGAIN)
        names = [point.name for point in table.points]
        if len(set(names)) < len(names) or table.full not in names:
            raise VerificationError(f"{FILE}: settings must have different names, {table.full!r} among them. {AGAIN}")
        return table


def read_table(directory: Path) -> Table:
    """The sweep in `directory`; KnobError where there is none, VerificationError where its record is damaged."""
    if not (directory / FILE).is_file():
        raise KnobError(f"{directory} must hold {FILE}, it has none. Give the --out of a finished `knobcast sweep`.")
    return Table.parse(read_json(directory / FILE, way_out=AGAIN))


def table_text(table: Table) -> str:
    """The file's content."""
    return json.dumps(table.as_dict(), indent=1, ensure_ascii=False) + "\n"
