"""What one contestant is started with: JSON from the parent to `worker.py`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


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
