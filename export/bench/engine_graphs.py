"""The variant's own graphs, driven as `knobcast run` does: io.json's session options, the cache bound to the device."""

from pathlib import Path

from export.bench.job import BenchJob
from export.bench.workload import Workload
from export.run.bound import Bound
from export.run.graphs import Graphs


class Engine:
    """onnxruntime sessions over one variant; `start` begins a sequence."""

    sees = True

    def __init__(self, job: BenchJob, workload: Workload) -> None:
        import onnxruntime  # noqa: F401 - loaded here, not on the clock

        self.workload = workload
        self.graphs = Graphs(Path(job.directory), job.provider, job.threads, job.graph)
        self.sequence: Bound

    def load(self) -> None:
        """Open every session."""
        for kind in self.graphs.modality.graphs:
            getattr(self.graphs, kind)

    def start(self) -> None:
        """Forget the last sequence."""
        self.sequence = Bound(self.graphs)

    def see(self) -> None:
        """Image features."""
        picture = self.workload.picture
        self.sequence.see(picture["images"], picture["image_masks"], picture["feature_index"])

    def prefill(self) -> int:
        """The first new token."""
        return int(self.sequence.prefill(self.workload.ids).argmax())

    def step(self, token: int) -> int:
        """The next one."""
        return int(self.sequence.decode(token).argmax())
