"""Graphs whose matrices meet activations of 8 bits, as users run them: how far they are from the golden logits.

What they mean is proven elsewhere and exactly: the same graph, not repacked, multiplies in float32 (`checking.py`).
"""

import numpy as np

from export.gate.checking import rounds_activations
from export.run.graphs import Graphs
from transform.arrays import Array
from transform.errors import VerificationError

# Root mean square of the differences, as a part of the logits' own. The largest single one says little: where rounding
# decides between two experts of nearly equal probability, a whole row differs. 0.013 to 0.043 was seen: 16 blocks of
# the embedded model, 4 of random weights at MolmoE-1B's widths, prompts of 18 to 64 tokens.
TOLERANCE = 0.1


def check_activations(graphs: Graphs, ids: Array, logits: Array) -> dict[str, float]:
    """Ids [1, s] through `graphs`, opened as a user does, against float32 `logits` [1, s, V]; empty where nothing is
    rounded. Raises VerificationError beyond TOLERANCE."""
    if not rounds_activations(graphs):
        return {}
    ours, _ = graphs.step(ids, np.ones_like(ids), graphs.empty_cache(len(ids)))
    difference = _root_mean_square(ours - logits) / _root_mean_square(logits)
    if not difference <= TOLERANCE:  # NaN isn't
        raise VerificationError(
            f"text.onnx with int8 activations: the differences of its logits must be at most {TOLERANCE} of the logits "
            f"(root mean square), they are {difference:.3g}. Export it with --activations float32."
        )
    return {"relative_tolerance": TOLERANCE, "root_mean_square": difference}


def _root_mean_square(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
