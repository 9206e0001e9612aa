"""Keep the k blocks with the highest scores.

The first and the last block stay by default and need no score. Every other block must have one: a block that was
never scored can't be ranked, and guessing (or taking the first k blocks) would drop the wrong ones silently.
Of equal scores the earlier block stays.
"""

from collections.abc import Iterable, Mapping, Sequence

from importance.scores import Scores
from transform.errors import KnobError, ScoresError

BlockScores = Scores | Mapping[int, float] | Iterable[float]  # of some blocks by index, or of all in order


def keep_top_k(
    scores: Mapping[int, float], k: int, layers: int, keep_first: bool = True, keep_last: bool = True, pinned: int = 0
) -> tuple[int, ...]:
    """The k of `layers` blocks that stay, ascending. `scores`: block index -> importance, possibly partial. `pinned`:
    so many first blocks stay because the family asks for it (`transform.depth.pinned_blocks`)."""
    if type(k) is not int or not 1 <= k <= layers:
        raise KnobError(f"blocks must be from 1 to {layers} (the model's blocks), got {k!r}. Choose one of these.")
    held = protected(layers, keep_first, keep_last) | set(range(pinned))
    if k < len(held) and pinned > 1:
        raise KnobError(
            f"the first {pinned} blocks of this model must stay and the last one does by default, so at least "
            f"{len(held)} blocks are kept, got {k}. Keep {len(held)} or more, or name the blocks with --keep-blocks."
        )
    if k < len(held):
        raise KnobError(
            f"the first and the last block stay by default, so at least {len(held)} blocks are kept, got {k}. "
            "Keep 2 or more, or name the blocks with --keep-blocks (in Python: keep_first=False or keep_last=False)."
        )
    if k == len(held) or k == layers:
        return tuple(range(layers)) if k == layers else tuple(sorted(held))
    open_blocks = ranked(scores, layers, held)
    best = sorted(open_blocks, key=lambda block: (-scores[block], block))[: k - len(held)]
    return tuple(sorted({*held, *best}))


def select_top_k_blocks(
    scores: BlockScores, k: int, keep_first: bool = True, keep_last: bool = True, n_layers: int | None = None
) -> list[bool]:
    """One bool per block, True where it stays: the mask that BlockMaskWrapper takes.

    scores: a list, array or tensor with one value per block; or `Scores` or a mapping of block index to value, which
    may be partial and then needs `n_layers`.
    """
    values, layers = as_mapping(scores, n_layers)
    return mask(keep_top_k(values, k, layers, keep_first, keep_last), layers)


def protected(layers: int, keep_first: bool, keep_last: bool) -> set[int]:
    """The blocks that stay whatever their score is."""
    return ({0} if keep_first else set()) | ({layers - 1} if keep_last else set())


def ranked(scores: Mapping[int, float], layers: int, held: set[int]) -> list[int]:
    """The blocks whose scores decide; ScoresError names those that have none."""
    found = [block for block in range(layers) if block not in held]
    missing = [block for block in found if block not in scores]
    if missing:
        raise ScoresError(
            f"each of the {len(found)} blocks that may be dropped needs a score; {len(missing)} have none: "
            f"{', '.join(map(str, missing))}. Score them too, or name the blocks with --keep-blocks or --drop-blocks."
        )
    return found


def as_mapping(scores: BlockScores, n_layers: int | None) -> tuple[dict[int, float], int]:
    """(block index -> importance, number of blocks) from anything the documented functions take."""
    if isinstance(scores, Scores):
        scores = scores.importance
    if isinstance(scores, Mapping):
        values = {int(block): _finite(value, block) for block, value in scores.items()}
        if len(values) != len(scores):
            raise ScoresError(f"each block has one score, got {len(scores)} keys for {len(values)} blocks.")
        if n_layers is None and sorted(values) != list(range(len(values))):
            raise ScoresError(
                f"scores of some blocks only don't tell how many blocks there are: {len(values)} scores, blocks "
                f"{min(values, default=None)} to {max(values, default=None)}. Give n_layers."
            )
    else:
        listed: Sequence[float] = scores.tolist() if hasattr(scores, "tolist") else list(scores)
        values = {block: _finite(value, block) for block, value in enumerate(listed)}
        if n_layers is not None and n_layers != len(values):
            raise ScoresError(f"a list of scores needs one per block: n_layers={n_layers}, scores={len(values)}.")
    layers = len(values) if n_layers is None else n_layers
    outside = [block for block in values if not 0 <= block < layers]
    if not values or outside:
        raise ScoresError(f"scores must be for blocks 0 to {layers - 1}, got {sorted(values)}. Check n_layers.")
    return values, layers


def mask(keep_blocks: Sequence[int], layers: int) -> list[bool]:
    """One bool per block, True where it stays."""
    return [block in set(keep_blocks) for block in range(layers)]


def _finite(value: float, block: object) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ScoresError(f"scores must be finite numbers, block {block} has {value!r}. Score it again.") from error
    if number != number or number in (float("inf"), float("-inf")):
        raise ScoresError(f"scores must be finite numbers, block {block} has {value!r}. Score it again.")
    return number
