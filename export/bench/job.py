"""What one contestant is, and what it is started with: JSON from the parent to `worker.py`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol


class Engine(Protocol):
    """A contestant, in its own process; made of a job and the workload, before the clock runs."""

    sees: bool  # whether `see` is timed

    def load(self) -> None:
        """Read the weights."""

    def start(self) -> None:
        """Forget the last sequence."""

    def see(self) -> None:
        """Image features; of those that see."""

    def prefill(self) -> int:
        """The first new token."""

    def step(self, token: int) -> int:
        """The next one."""


@dataclass(frozen=True)
class BenchJob:
    """The variant and the machine; `name`, `workload` and `scratch` are set when a contestant is started."""

    directory: str
    provider: str  # a key of io.json's `providers`
    threads: int
    graph: str = "text.onnx"  # the decoder's file
    dtype: str = "float32"  # of PyTorch's weights
    blocks_kept: Sequence[int] | None = None  # a family's member; None: the variant as it is
    top_k: Sequence[int] | None = None  # one per kept block
    name: str = ""  # the contestant
    workload: str = ""  # the file
    scratch: str = ""  # a folder

    @property
    def device(self) -> str:
        """As PyTorch and onnxruntime's bindings call it."""
        return "cpu" if self.provider == "cpu" else "cuda"

    def to_json(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "BenchJob":
        """What `to_json` gave."""
        return cls(**json.loads(text))
