"""Keep the blocks whose score reaches a share of the highest one.

Not a smooth depth knob: one block that scores far above the others decides (MolmoE's block 0: at a tenth of its
score, half of the blocks are below). `relative=False` compares with the threshold itself.
"""

import math

from importance.search.top_k import BlockScores, as_mapping, mask, protected, ranked
from transform.errors import KnobError


def select_by_threshold(
    scores: BlockScores,
    threshold: float,
    keep_first: bool = True,
    keep_last: bool = True,
    n_layers: int | None = None,
    relative: bool = True,
) -> list[bool]:
    """One bool per block, True where score >= threshold × highest score (or >= threshold, if not `relative`).

    The first and last block stay by default; scores as in `select_top_k_blocks`.
    """
    values, layers = as_mapping(scores, n_layers)
    if not math.isfinite(threshold):
        raise KnobError(f"threshold must be a finite number, got {threshold}.")
    held = protected(layers, keep_first, keep_last)
    bar = threshold
    if relative:
        if not 0 <= threshold <= 1:
            raise KnobError(f"a relative threshold is a share from 0 to 1, got {threshold}. Or pass relative=False.")
        if max(values.values()) <= 0:
            raise KnobError(
                f"a share of the highest score needs one above 0, the highest is {max(values.values())}. "
                "Pass relative=False with a threshold in the scores' own unit."
            )
        bar = threshold * max(values.values())
    keep_blocks = held | {block for block in ranked(values, layers, held) if values[block] >= bar}
    if not keep_blocks:
        raise KnobError(
            f"at least one block must stay; no score reaches {bar}, the highest is {max(values.values())}. "
            "Lower the threshold."
        )
    return mask(sorted(keep_blocks), layers)
