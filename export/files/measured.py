"""What a sweep measured of a setting, as its table, the manifest and the card have it.

Times are milliseconds, sizes bytes, accuracies 0 to 1. What wasn't measured is None or absent, never estimated.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from export.cost.work import Workload
from transform.strict_json import Record
from transform.strict_record import parse_record


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
class Data:
    """The questions. `task`: how an answer is graded."""

    name: str
    digest: str
    samples: int
    pictures: int
    task: str


@dataclass(frozen=True)
class Measured:
    """Of one variant. `source`: the source's own accuracy on the same questions; `workloads`: what `latency` timed;
    `machine`: where (`machine_facts`)."""

    data: Data | None
    quality: Quality | None
    source: Share | None
    workloads: Mapping[str, Workload]
    latency: Mapping[str, Latency]
    machine: Mapping[str, object] | None

    def as_dict(self) -> Record:
        """For the manifest."""
        return asdict(self)

    @classmethod
    def parse(cls, value: object, where: str) -> "Measured":
        """What `as_dict` gave; raises VerificationError."""
        return parse_record(cls, value, where, "Export the variant again.")
