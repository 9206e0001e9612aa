"""The graphs of a variant, opened so that any machine can check them."""

from pathlib import Path
from typing import Any

import numpy as np

from export.numpy_run.session import NumpySession
from export.onnx_run import Graphs


class NumpyGraphs(Graphs):
    """A variant's graphs run by numpy, in float32 throughout."""

    def _open(self, name: str) -> Any:
        return NumpySession(self.directory / name, widen=True)


def checking_graphs(directory: Path, text: str = "text.onnx") -> Graphs:
    """onnxruntime on the CPU, or numpy for the cuda form, whose fused experts run on GPUs alone.

    Kernels for repacked 8-bit experts round activations to 8 bits as well; those for weights as they lie do not.
    """
    graphs = Graphs(directory, text=text)
    if graphs.io.get("form") == "cuda":
        return NumpyGraphs(directory, text=text)
    if graphs.io.get("form") == "int8":
        graphs.io["session_options"]["session.disable_prepacking"] = "1"
    return graphs


def computed_by(form: str) -> str:
    """What `checking_graphs` opens for a form, in words for manifest and card."""
    if form == "cuda":
        return f"numpy {np.__version__} in float32, not a GPU"
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__} on the CPU" + (", weights not repacked" if form == "int8" else "")
