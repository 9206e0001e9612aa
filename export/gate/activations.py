"""Graphs whose matrices meet activations of 8 bits, as users run them: how far they are from the golden logits.

What they mean is proven elsewhere and exactly: the same graph, not repacked, multiplies in float32 (`checking.py`).
"""

from collections.abc import Callable, Iterator

import numpy as np

from export.gate.checking import rounds_activations
from export.run.graphs import Graphs
from transform.arrays import Array
from transform.errors import VerificationError

# Of a typical position: the median over positions of the differences' root mean square, as a part of the logits' own.
# Rounding 32 numbers to 8 bits moves a product by 0.5 % (their largest is about twice their root mean square, a step is
# 1/127 of it); of decoders of 4 to 16 blocks, random and trained, 0.01 to 0.03 comes out mostly. Five bits give 0.11 to
# 0.27, experts with gate and up exchanged 0.37 to 0.49. All positions' mean or largest says less: where rounding
# decides between two experts of nearly equal probability, a row differs by 0.2 to 0.6, in any right program.
TOLERANCE = 0.1
# Where the first tokens get other experts, all behind them see it (0.18 once in 168 prompts). A wrong kernel is wrong
# for every prompt.
PROMPTS = 4


def check_activations(graphs: Graphs, ids: Array, logits: Array, exact: Callable[[], Graphs]) -> dict[str, float]:
    """Ids [1, s] through `graphs`, opened as a user does, against float32 `logits` [1, s, V]; empty where nothing is
    rounded. Beyond TOLERANCE other prompts are asked of both `graphs` and those that `exact` opens, where nothing is
    rounded; raises VerificationError if none is within it."""
    if not rounds_activations(graphs):
        return {}
    differences: list[float] = []
    for asked, expected in _prompts(ids, logits, exact):
        ours, _ = graphs.step(asked, np.ones_like(asked), graphs.empty_cache(len(asked)))
        found = distance(ours, expected)
        if found["typical"] <= TOLERANCE:
            return {"relative_tolerance": TOLERANCE, "prompt": float(len(differences) + 1), **found}
        differences.append(found["typical"])
    raise VerificationError(
        f"text.onnx with int8 activations: at a typical position the differences of its logits must be at most "
        f"{TOLERANCE} of the logits (root mean square), they are {', '.join(f'{value:.3g}' for value in differences)} "
        f"for {len(differences)} prompts. Export it with --activations float32."
    )


def distance(ours: Array, logits: Array) -> dict[str, float]:
    """How far logits [b, s, V] are from float32 ones, as a part of these: at a typical position, and over all."""
    whole = _root_mean_square(logits, None)
    typical = float(np.median(_root_mean_square(ours - logits, -1)) / whole)
    return {"typical": typical, "root_mean_square": float(_root_mean_square(ours - logits, None) / whole)}


def _prompts(ids: Array, logits: Array, exact: Callable[[], Graphs]) -> Iterator[tuple[Array, Array]]:
    yield ids, logits
    opened = exact()
    for seed in range(1, PROMPTS):
        asked = np.random.Generator(np.random.PCG64(seed)).integers(0, logits.shape[-1] - 1, ids.shape)
        yield asked, opened.step(asked, np.ones_like(asked), opened.empty_cache(len(asked)))[0]


def _root_mean_square(values: Array, axis: int | None) -> Array:
    return np.asarray(np.sqrt(np.mean(np.square(values, dtype=np.float64), axis=axis)))
