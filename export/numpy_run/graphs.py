"""The graphs of a variant, opened so that any machine can check them."""

from pathlib import Path
from typing import Any

import numpy as np

from export.numpy_run.session import NumpySession
from export.run.graphs import Graphs
from transform.arrays import Array
from transform.errors import VerificationError

ROUNDING = 2e-2  # of the largest logit, at a typical position; 1e-3 to 3e-3 was seen


class NumpyGraphs(Graphs):
    """A variant's graphs run by numpy, in float32 throughout."""

    widen = True

    def _open(self, name: str) -> Any:
        return NumpySession(self.directory / name, widen=self.widen)


class RoundingGraphs(NumpyGraphs):
    """The same with every intermediate value rounded to the type that the graph gives it, as a GPU would."""

    widen = False


def check_rounding(directory: Path, ids: Array, logits: Array) -> float:
    """Run the cuda form's decoder on ids [1, s] as its types say -> a typical position's distance from float32 logits.

    Of the largest logit, the median over positions: where two experts are nearly equal, rounding picks another one.
    Raises VerificationError where the types don't fit, or where float16 overflows or keeps no digits.
    """
    graphs = RoundingGraphs(directory)
    found, _ = graphs.step(ids, np.ones_like(ids), graphs.empty_cache(len(ids)))
    typical = float(np.median(np.abs(found - logits).max(-1)) / np.abs(logits).max())
    if not typical <= ROUNDING:  # NaN isn't
        raise VerificationError(
            f"text.onnx: float16 must keep a typical position within {ROUNDING} of the largest logit, it is "
            f"{typical:.3g} away. Weights or activations leave float16's range: use --form cpu or int4."
        )
    return typical


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
