"""Keep blocks in order from the first: a baseline that knows nothing of scores.

The last block stays by default, as it does in the other strategies; `keep_last=False` gives the plain prefix
(an early exit). Nothing falls back to this: it happens only when it is called.
"""

from importance.search.top_k import mask
from transform.errors import KnobError


def select_sequential_blocks(n_layers: int, num_active: int, keep_last: bool = True) -> list[bool]:
    """One bool per block, True for the first ones and, unless told otherwise, the last; `num_active` are True."""
    least = 2 if keep_last and n_layers > 1 else 1
    if type(num_active) is not int or not least <= num_active <= n_layers:
        raise KnobError(
            f"num_active must be from {least} to {n_layers} (the model's blocks; the last one stays: {keep_last}), "
            f"got {num_active!r}. Choose one of these, or pass keep_last=False."
        )
    keep_blocks = [*range(num_active - 1), n_layers - 1] if keep_last else [*range(num_active)]
    return mask(keep_blocks, n_layers)
