"""The graphs of a variant run by numpy: in float32, or rounded as a GPU would."""

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
    """Run a float16 decoder on ids [1, s] as its types say -> a typical position's distance from float32 logits.

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
