"""Who computes a form's graphs where they are proven: the one place that reads `Form.checked_by`."""

from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime

from export.numpy_run.graphs import NumpyGraphs
from export.numpy_run.static import NumpyStaticGraphs
from export.run.graphs import Graphs
from export.run.static import StaticGraphs
from transform.forms import ROUNDED, Form

Opened = TypeVar("Opened", bound=Graphs)


def checking_graphs(directory: Path, text: str = "text.onnx") -> Graphs:
    """The graphs of a variant, opened so that any machine can check them; `text` names the decoder's file."""
    graphs = Graphs(directory, text=text)
    return NumpyGraphs(directory, text=text) if graphs.form.checked_by == "numpy" else _exact(graphs)


def checking_static(directory: Path, prefix: str = "") -> StaticGraphs:
    """The same of its static graphs, whose decoders' names begin with `prefix`."""
    graphs = StaticGraphs(directory, prefix=prefix)
    return NumpyStaticGraphs(directory, prefix=prefix) if graphs.form.checked_by == "numpy" else _exact(graphs)


def computed_by(form: Form) -> str:
    """What these open for a form, in words for manifest and card."""
    if form.checked_by == "numpy":
        return f"numpy {np.__version__} in float32, not a GPU"
    weights = "" if form.checked_by == "onnxruntime" else ", weights not repacked"
    return f"onnxruntime {onnxruntime.__version__} on the CPU{weights}"


def rounds_activations(graphs: Graphs | StaticGraphs) -> bool:
    """Whether a variant's kernels round what they multiply with; they do so with repacked weights alone."""
    return graphs.io.get("activations") == ROUNDED


def _exact(graphs: Opened) -> Opened:
    if graphs.form.checked_by == "onnxruntime without repacking" or rounds_activations(graphs):
        graphs.io["session_options"]["session.disable_prepacking"] = "1"
    return graphs
