"""The knobs at run time: how many experts, and which blocks. What a static variant must equal, difference 0.

Works on our own models and on transformers'. Nothing here writes a checkpoint: a masked model is for running, its
weights stay in memory, and the config of a model whose blocks differ in k can't always say so.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from transform.architectures.vocabulary import LISTED_TOP_K, NUMBERED, PER_BLOCK, PERIODS, TOP_K, kept_period
from transform.choices import Choice, find_choices
from transform.choices import find_decoder as find_decoder
from transform.errors import KnobError
from transform.knobs import merged_k


def set_moe_top_k(model: nn.Module, k: int | Sequence[int]) -> int:
    """Give every token k experts, or k[i] in the i-th block that has a router; returns the number of routers set.

    The kept weights are renormalised exactly where the model does so anyway; MolmoE and OLMoE don't.
    Raises KnobError for a k below 1 or above the experts, and for a model that doesn't honour it.
    """
    choices = find_choices(model)
    ks = _checked(k, choices)
    before = _snapshot(model)
    changed = [(choice, value) for choice, value in zip(choices, ks, strict=True) if choice.k != value]
    for choice, value in changed:
        choice.set(value)
    ignoring = next((choice for choice, value in changed if not choice.honours(value)), None)
    if ignoring is not None:
        _restore(before)
        raise KnobError(
            f"the router must choose as many experts as top_k says: {type(ignoring.router).__name__} doesn't for {k}. "
            f"This model's k is fixed; leave it at {ignoring.k}."
        )
    _announce(model, ks)
    return len(choices)


@contextmanager
def moe_top_k(model: nn.Module, k: int | Sequence[int]) -> Iterator[int]:
    """`set_moe_top_k` for the length of a `with` block; routers and config are then what they were."""
    before = _snapshot(model)
    try:
        yield set_moe_top_k(model, k)
    finally:
        _restore(before)


@contextmanager
def knobs_at_run_time(model: nn.Module, keep_blocks: Collection[int], top_k: Sequence[int]) -> Iterator[None]:
    """Inside a `with` block only `keep_blocks` are there, and the i-th of these blocks gives a token top_k[i] experts.

    What a variant of these blocks and this k must equal. `keep_blocks` holds indices of the model's blocks, ascending.
    """
    mask = [block in keep_blocks for block in range(len(find_decoder(model).layers))]
    with BlockMaskWrapper(model, mask):
        if not any(top_k):  # no block has experts
            yield
            return
        with moe_top_k(model, [k for k in top_k if k]):
            yield


def find_routers(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """(router, its number of experts) of each block that has one, in the model's order."""
    return [(choice.router, choice.experts) for choice in find_choices(model)]


class BlockMaskWrapper:
    """A decoder run without some of its blocks, exactly as if they weren't there: cache, padding, generation.

    `mask` has one bool per block, True where it is active. `model` is the whole model or its decoder. `apply` takes
    the other blocks out of the layer list and renumbers the rest, so that no code path can see a difference;
    `remove` puts everything back. Also a context manager, applied inside `with`.
    """

    def __init__(self, model: nn.Module, mask: Sequence[bool] | torch.Tensor) -> None:
        self.model = model
        self._decoder = find_decoder(model)
        total = len(self._decoder.layers)
        values = mask.tolist() if isinstance(mask, torch.Tensor) else list(mask)
        if len(values) != total or any(value not in (0, 1) for value in values):
            raise KnobError(
                f"the mask must hold one bool per block, {total} here: got {len(values)} values, {values}. "
                "Give True for each block that runs."
            )
        if not any(values):
            raise KnobError(f"at least one of the {total} blocks must run: got none. Set one to True.")
        self.mask = tuple(bool(value) for value in values)
        self._undo: _Applied | None = None

    @property
    def num_active_blocks(self) -> int:
        """How many blocks run while the mask is applied."""
        return sum(self.mask)

    def apply(self) -> "BlockMaskWrapper":
        """Take the masked blocks out; a second call changes nothing."""
        if self._undo is None:
            self._undo = _Applied(self.model, self._decoder, self.mask)
        return self

    def remove(self) -> None:
        """Put all blocks back; a k that was set meanwhile stays."""
        if self._undo is not None:
            self._undo.revert()
            self._undo = None

    def __enter__(self) -> "BlockMaskWrapper":
        return self.apply()

    def __exit__(self, *error: object) -> None:
        self.remove()


class _Applied:
    """The change one mask made, and the way back."""

    def __init__(self, model: nn.Module, decoder: nn.Module, mask: tuple[bool, ...]) -> None:
        self.model, self.decoder, self.layers = model, decoder, decoder.layers
        kept = [layer for layer, active in zip(self.layers, mask, strict=True) if active]
        self.before: list[tuple[object, str, object]] = []
        own = getattr(decoder, "config", None)
        configs = _configs(model, decoder)
        for config in configs if own is None or any(own is c for c in configs) else [*configs, own]:
            self._shorten(config, mask)
        for name, values in list(vars(decoder).items()):  # what some decoders list of their blocks when they are made
            if isinstance(values, list | tuple) and len(values) == len(mask) > 1:
                self._set(decoder, name, [v for v, active in zip(values, mask, strict=True) if active])
        for new, layer in enumerate(kept):
            for module in layer.modules():
                if type(getattr(module, "layer_idx", None)) is int:  # its slot in the cache
                    self._set(module, "layer_idx", new)
        self.short = nn.ModuleList(kept)
        self.ks = [choice.k for choice in find_choices(self.short)]
        decoder.layers = self.short

    def _shorten(self, config: Any, mask: tuple[bool, ...]) -> None:
        """What the decoder looks up by a block's number while it runs; what its blocks are made of is theirs by now."""
        if hasattr(config, "num_hidden_layers"):
            self._set(config, "num_hidden_layers", sum(mask))
        for key in PER_BLOCK:
            values = getattr(config, key, None)
            written = not isinstance(getattr(type(config), key, None), property)  # else it follows from others
            if written and isinstance(values, list | tuple) and len(values) == len(mask):
                self._set(config, key, [v for v, active in zip(values, mask, strict=True) if active])
        periods = {key: getattr(config, key) for pair in PERIODS for key in pair if hasattr(config, key)}
        kept = [i for i, active in enumerate(mask) if active]
        for period, offset in PERIODS:
            if period in periods:
                for key, value in kept_period(periods, period, offset, kept).items():
                    self._set(config, key, value)
        new = {old: at for at, old in enumerate(kept)}
        for key in NUMBERED:
            values = getattr(config, key, None)
            if isinstance(values, list | tuple) and all(type(v) is int for v in values):
                self._set(config, key, [new[i] for i in values if i in new])

    def _set(self, owner: object, name: str, value: object) -> None:
        self.before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def revert(self) -> None:
        if self.decoder.layers is not self.short:
            raise KnobError("masks must be removed in the reverse order of applying: another one lies on top of this.")
        changed = self.ks != [choice.k for choice in find_choices(self.short)]
        self.decoder.layers = self.layers
        _restore(self.before)
        if changed:
            _announce(self.model, [choice.k for choice in find_choices(self.layers)])


def _checked(k: int | Sequence[int], routers: Sequence[Choice]) -> list[int]:
    if not routers:
        raise KnobError(
            "top-k needs a mixture-of-experts model: no module with a top_k and a router weight was found. "
            "Drop blocks instead."
        )
    ks: list[Any] = list(k) if isinstance(k, list | tuple) else [k] * len(routers)
    if any(type(value) is not int for value in ks):
        raise KnobError(f"top-k must be a whole number, or one per router: got {k!r}. Give for example 4.")
    if len(ks) != len(routers):
        raise KnobError(
            f"top-k per block needs one number per router: got {len(ks)} for {len(routers)}. Give {len(routers)}."
        )
    for i, (value, experts) in enumerate(zip(ks, (choice.experts for choice in routers), strict=True)):
        if not 1 <= value <= experts:
            raise KnobError(
                f"top-k must be from 1 to the experts, {experts}: got {value} for router {i}. Choose one of these."
            )
    return ks


def _snapshot(model: nn.Module) -> list[tuple[object, str, object]]:
    owners = [*model.modules(), *_configs(model)]
    names = ("top_k", *TOP_K)
    return [(owner, name, getattr(owner, name)) for owner in owners for name in names if _holds_k(owner, name)]


def _restore(before: list[tuple[object, str, object]]) -> None:
    for owner, name, value in reversed(before):
        setattr(owner, name, value)


def _holds_k(owner: object, name: str) -> bool:
    value = getattr(owner, name, None)
    return type(value) is int or (name in LISTED_TOP_K and isinstance(value, list | tuple))


def _announce(model: nn.Module, ks: list[int]) -> None:
    """Write the routers' k to configs, and to modules that keep a copy for the load-balancing loss."""
    for owner in (*_configs(model), *model.modules()):
        for key in TOP_K:
            if _holds_k(owner, key):
                uniform = isinstance(merged_k(ks), int)
                setattr(owner, key, list(ks) if key in LISTED_TOP_K and not uniform else max(ks))


def _configs(*modules: nn.Module) -> list[object]:
    """The decoder's configs among those of the modules, each once; a vision tower's also counts layers, its own."""
    found: list[object] = []
    for module in (module for root in modules for module in root.modules()):
        config: Any = getattr(module, "config", None)
        text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None
        for candidate in (config, text):
            routed = any(_holds_k(candidate, key) for key in TOP_K)
            if routed and all(candidate is not seen for seen in found):
                found.append(candidate)
    return found
