"""The graphs of a variant, opened so that any machine can check them."""

from pathlib import Path
from typing import Any

from export.numpy_run.session import NumpySession
from export.onnx_run import Graphs


class NumpyGraphs(Graphs):
    """A variant's graphs run by numpy, in float32 throughout."""

    def _open(self, name: str) -> Any:
        return NumpySession(self.directory / name, widen=True)


def checking_graphs(directory: Path, text: str = "text.onnx") -> Graphs:
    """onnxruntime on the CPU, or numpy where that can't tell whether a graph is right.

    The cuda form's fused experts run on GPUs alone; the int8 form's round their activations to 8 bits.
    """
    graphs = Graphs(directory, text=text)
    return NumpyGraphs(directory, text=text) if graphs.io.get("form") in ("cuda", "int8") else graphs
