"""What a job of `shards.py` is given, and what it gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Required, TypedDict

from importance.configurations import Config
from transform.strict_json import Record


class Data(TypedDict):
    """Where the samples come from, as `read_samples` takes it. digest: of the spec's own samples alone."""

    file: list[str]
    annotations: str | None
    images: str | None
    limit: int | None
    digest: str


class Result(TypedDict, total=False):
    """losses: packed [configs, samples]; answers: texts [configs][samples]; values: packed [blocks, rows], or [blocks,
    chunks] with `counts`."""

    losses: str
    answers: list[list[str]]
    values: str
    counts: list[int]  # samples of each chunk
    report: Required[dict[str, int]]  # the engine's


@dataclass(frozen=True)
class Spec:
    """Everything that a result depends on. kind: `losses` or `answers` of `configs`, or `observe` or `gradient` with
    `options`."""

    kind: str
    model: str
    model_digest: str
    side: str  # digest of the files beside the weights
    metric: str
    task: str
    scoring: str
    tokens: int | str | None
    full: Config
    max_new_tokens: int
    streamed: bool
    references: str
    tokens_per_call: int | None
    live_bytes: int
    samples: list[int]
    data: Data
    configs: Sequence[Config] = ()
    options: Mapping[str, float | None] = field(default_factory=dict)
    version: int = 1

    @property
    def of_configs(self) -> bool:
        """Whether configurations are measured, and not the full model alone."""
        return self.kind in ("losses", "answers")

    @classmethod
    def parse(cls, raw: Record) -> "Spec":
        """What `as_dict` gave, behind JSON."""
        configs = [tuple(config) for config in raw.get("configs", ())]
        return cls(**{**raw, "full": tuple(raw["full"]), "configs": configs})

    def as_dict(self) -> dict[str, object]:
        """For `run_jobs`, which keeps results by it: what a kind doesn't have isn't named."""
        absent = "options" if self.of_configs else "configs"
        return {name: value for name, value in asdict(self).items() if name != absent}
