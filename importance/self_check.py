"""Before a run: the engine's logits beside the model's own, on the first tokens that are to be scored.

Names tell of known differences (`suited.py`); this finds the others, such as a mask, a scale or a position that the
model makes for itself, at the price of two short passes. Both sides compute the same sums in the same order, with
transformers' eager attention, so models that the engine knows differ by exactly 0, in any dtype.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from importance.around import Masks
from importance.blocks import Blocks
from importance.calling import Memory, ScoringError, at_k, call, runnable
from importance.chunks import PADDING, Chunk
from importance.suited import INSTEAD
from transform.choices import find_choices, find_decoder

LENGTH = 64  # tokens compared; shorter sequences are repeated up to here
MOST_WINDOW, BEYOND = 512, 8  # windows up to here are outgrown, by so many tokens
# Of the largest logit, in float32. Right: 0 in every family tried; a soft cap, the mildest wrong one: 1.7e-2.
TOLERANCE = 1e-4
_LOGITS, _K = "logits", "k"


@torch.no_grad()
def insist_on_agreement(blocks: Blocks, chunk: Chunk, ks: Iterable[int], remember: bool) -> None:
    """Raise ScoringError where the engine's logits aren't the model's, or another k changes nothing; once for `blocks`.

    ks: that will be asked for, 0 among them or not. remember: whether blocks will have to write keys and values.
    """
    others = set(ks) - {0}
    if blocks.agreed >= {_LOGITS, _K} or (_LOGITS in blocks.agreed and len(others) < 2):
        return
    hidden = _sequence(chunk, blocks)
    with _eager(blocks):
        with runnable(), _as_scored(blocks):
            theirs, count = blocks.plain(hidden)
        if not torch.isfinite(theirs).all():
            return  # a damaged model: the run says so, with the configuration
        if _LOGITS not in blocks.agreed:
            _compare(type(blocks.model).__name__, _called(blocks, hidden, count, remember), theirs[0])
            blocks.agreed.add(_LOGITS)
        if _k_is_heard(blocks, hidden, count, others):
            blocks.agreed.add(_K)


def _sequence(chunk: Chunk, blocks: Blocks) -> Tensor:
    """[1, n, d]: the longest plain sequence of the chunk's first row, cut or repeated to LENGTH tokens, or to more than
    any window of up to MOST_WINDOW."""
    decoder = find_decoder(blocks.model)
    seen = chunk.allowed[0].sum(-1).masked_fill(chunk.modality[0] == PADDING, -1)
    hidden = chunk.hidden[:1, chunk.allowed[0, int(seen.argmax())]]
    windows = [window for window in blocks.around.windows if window is not None and window <= MOST_WINDOW]
    wanted = max([LENGTH, *(window + BEYOND for window in windows)])
    wanted = min(wanted, getattr(decoder.config, "max_position_embeddings", None) or wanted)
    return hidden.repeat(1, -(-wanted // hidden.shape[1]), 1)[:, :wanted]


def _called(blocks: Blocks, hidden: Tensor, count: int, remember: bool) -> Tensor:
    """Logits [n, V] through the first `count` blocks."""
    with _as_scored(blocks):
        masks, positions, rotary = _places(blocks, hidden)
        hidden = blocks.around.entering(hidden)
        for index in range(count):
            mask = masks.of(blocks.around.windows[index])
            with blocks.block(index) as block:
                hidden = call(block, hidden, mask, positions, rotary, Memory() if remember else None)
        with blocks.head() as head:
            return head(hidden[0])


@contextmanager
def _as_scored(blocks: Blocks) -> Iterator[None]:
    """Models that are made in another way than scoring takes them break in whatever way they do: all are refused."""
    name = type(blocks.model).__name__
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = (str(error).strip() or "no message").splitlines()[0][:200]
        raise ScoringError(
            f"scoring calls blocks one by one, with mask, positions and cos/sin: those of {name} can't be called so "
            f"({type(error).__name__}: {reason}). {INSTEAD}"
        ) from error


def _compare(name: str, ours: Tensor, theirs: Tensor) -> None:
    difference, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
    bound = max(TOLERANCE, 2 * torch.finfo(theirs.dtype).eps)
    if not difference <= bound * largest:
        raise ScoringError(
            f"scoring must give the model's own logits, within {bound:.2g} of the largest: on {len(ours)} tokens those "
            f"of {name} differ by {difference:.3g}, the largest is {largest:.3g}. The model does something between its "
            f"blocks that scoring doesn't. {INSTEAD}"
        )


def _k_is_heard(blocks: Blocks, hidden: Tensor, count: int, ks: set[int]) -> bool:
    """Whether another k of `ks` was tried, in the first block that has a router. Some have their number built in."""
    masks, positions, rotary = _places(blocks, hidden)
    mask = masks.of(None)
    for index in range(count):
        with blocks.block(index) as block:
            choices = find_choices(block)
            own = choices[0].k if choices else 0
            other = min(ks - {own}, default=None)
            if not choices or other is None:
                continue
            with at_k(block, other):
                changed = call(block, hidden, mask, positions, rotary)
            if torch.equal(changed, call(block, hidden, mask, positions, rotary)):
                raise ScoringError(
                    f"scoring sets how many experts a token gets: {type(block).__name__} gives the same for {other} as "
                    f"for its own {own}, {type(choices[0].router).__name__} has its number built in. Leave k at {own}."
                )
            return True
    return False


def _places(blocks: Blocks, hidden: Tensor) -> tuple[Masks, Tensor, tuple[Tensor, Tensor]]:
    """Masks, positions and cos/sin of one sequence."""
    size = hidden.shape[1]
    positions = torch.arange(size, device=hidden.device)[None]
    allowed = torch.ones(1, size, size, dtype=torch.bool, device=hidden.device).tril()
    return Masks(allowed, positions, positions, hidden.dtype), positions, blocks.rotary(hidden, positions)


@contextmanager
def _eager(blocks: Blocks) -> Iterator[None]:
    """Inside, attention is transformers' eager one: others round differently with and without an explicit mask."""
    with blocks.block(0) as block:
        modules: list[nn.Module] = [*find_decoder(blocks.model).modules(), *block.modules()]
    found = [module.config for module in modules if hasattr(module, "config")]
    configs = {id(config): config for config in found if hasattr(config, "_attn_implementation")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, value in before:
            config._attn_implementation = value
