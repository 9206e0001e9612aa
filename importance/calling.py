"""One decoder block, called the way transformers' decoders call it, with no argument that the block could swallow.

Decoder layers take `**kwargs`, so one that doesn't know an argument runs without it and says nothing. Arguments are
therefore given by the names in the layer's own signature, read once per class, and what a block should have written
into its memory is looked for after each call.  Legend: B rows, S positions, d width, c width of a head.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
import transformers
from torch import Tensor, nn

from transform.choices import find_choices
from transform.errors import KnobcastError
from transform.molmoe.versions import tested_range

# The layer's own word counts, not the running version's: layers from elsewhere may have either.
_MEMORY_NAMES = ("cache", "past_key_values")
_PLACES = ("position_embeddings", "position_ids")  # rotary layers take the first, and name the second or don't


class ScoringError(KnobcastError):
    """A model that can't be scored."""


@dataclass(frozen=True)
class Arguments:
    """What a class of blocks calls its arguments. memory: the one for keys and values, None if it has none."""

    names: frozenset[str]
    memory: str | None


@cache
def arguments_of(forward: Callable[..., object]) -> Arguments:
    """Of a class's `forward`. Raises ScoringError if it names no mask or no positions."""
    names = frozenset(inspect.signature(forward).parameters)
    if "attention_mask" not in names:
        raise _swallowed(forward, "attention_mask")
    if not names & set(_PLACES):
        raise _swallowed(forward, " or ".join(_PLACES))
    return Arguments(names, next((name for name in _MEMORY_NAMES if name in names), None))


class Memory:
    """Stands where a layer expects its cache: takes down keys and values [B, heads, S, c], behind earlier ones."""

    def __init__(self, past: tuple[Tensor, Tensor] | None = None) -> None:
        self.past = past
        self.calls = 0
        self.keys = self.values = torch.empty(0)

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Called by the layer, with those of the new tokens."""
        if self.past is not None:
            keys, values = torch.cat((self.past[0], keys), 2), torch.cat((self.past[1], values), 2)
        self.keys, self.values = keys, values
        self.calls += 1
        return keys, values

    def holds(self, rows: int, new: int) -> bool:
        """Whether keys and values came, once, for every row and for all positions up to the new ones."""
        length = new + (0 if self.past is None else self.past[0].shape[2])
        found = [(t.ndim, t.shape[0], t.shape[-2]) for t in (self.keys, self.values) if t.ndim > 1]
        return self.calls == 1 and found == [(4, rows, length)] * 2


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, Q, K] bool to [B, 1, Q, K]: 0 where allowed, else the lowest finite number."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def call(
    block: nn.Module,
    hidden: Tensor,
    mask: Tensor,
    positions: Tensor,
    rotary: tuple[Tensor, Tensor],
    memory: Memory | None = None,
) -> Tensor:
    """[B, S, d] behind the block. Raises ScoringError where an argument would be swallowed or wasn't used."""
    forward = type(block).forward
    known = arguments_of(forward)
    given = {
        "attention_mask": mask,
        "position_ids": positions,
        "position_embeddings": rotary,
        "use_cache": memory is not None,
    }
    given = {name: value for name, value in given.items() if name in known.names}
    if memory is not None:
        if known.memory is None:
            raise _swallowed(forward, " or ".join(_MEMORY_NAMES))
        given[known.memory] = memory
    with runnable():
        after = block(hidden, **given)
    if memory is not None and not memory.holds(*hidden.shape[:2]):
        raise ScoringError(
            f"a block must write the keys and values of {hidden.shape[1]} new tokens in {hidden.shape[0]} rows, once: "
            f"{_named(forward)} was given {known.memory} and left keys {list(memory.keys.shape)}, values "
            f"{list(memory.values.shape)} in {memory.calls} writes. Use --scoring likelihood, which needs none, or "
            f"{tested_range()}."
        )
    return after[0] if isinstance(after, tuple) else after


@contextmanager
def runnable() -> Iterator[None]:
    """What PyTorch can't do here becomes ScoringError: widths that its grouped matrix product can't take, no memory."""
    try:
        yield
    except RuntimeError as error:
        raise ScoringError(
            f"scoring needs a model that PyTorch can run here: {str(error).splitlines()[0][:200]}."
        ) from error


@contextmanager
def at_k(block: nn.Module, k: int) -> Iterator[None]:
    """A block whose router gives every token k experts; a block without router is left alone."""
    choices = find_choices(block)
    before = [choice.k for choice in choices]
    try:
        for choice in choices:
            choice.set(k)
        yield
    finally:
        for choice, value in zip(choices, before, strict=True):
            choice.set(value)


def _swallowed(forward: Callable[..., object], lacking: str) -> ScoringError:
    return ScoringError(
        f"a decoder block must name each argument that scoring gives it, or may swallow one unread: {_named(forward)} "
        f"has no {lacking}. Score a model whose blocks have it, or use {tested_range()}."
    )


def _named(forward: Callable[..., object]) -> str:
    return f"{forward.__qualname__} (transformers {transformers.__version__})"
