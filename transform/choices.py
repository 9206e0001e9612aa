"""Where a model in memory chooses experts: of each block, every module that holds its k, and the router among them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transform.architectures.vocabulary import TOP_K
from transform.errors import KnobError


@dataclass(frozen=True, eq=False)
class Choice:
    """A block's choice of experts. holders: what has its number, as an attribute of this name."""

    router: nn.Module
    experts: int
    holders: tuple[tuple[object, str], ...]

    @property
    def k(self) -> int:
        """Experts per token."""
        owner, name = self.holders[0]
        return int(getattr(owner, name))

    def set(self, k: int) -> None:
        """Another number, wherever it is held."""
        for owner, name in self.holders:
            setattr(owner, name, k)

    def honours(self, k: int) -> bool:
        """Whether the router really gives k expert indices per token: some have their number built in.

        True where it can't be asked by itself: a router may want more than the stream.
        """
        weight = getattr(self.router, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
            return True
        tokens = torch.zeros(2, weight.shape[1], dtype=weight.dtype, device=weight.device)
        training, self.router.training = self.router.training, False  # no jitter
        try:
            with torch.no_grad():
                out = self.router.forward(tokens)
        except (TypeError, RuntimeError, ValueError, AttributeError):
            return True
        finally:
            self.router.training = training
        parts = out if isinstance(out, tuple | list) else (out,)
        chosen = [part for part in parts if isinstance(part, torch.Tensor) and not part.is_floating_point()]
        return not chosen or any(part.shape[-1] == k for part in chosen)


def find_choices(model: nn.Module) -> list[Choice]:
    """One per block that has experts, in the model's order; `model` may be a block, or a list of blocks."""
    found = (_choice_of(block) for block in _blocks_of(model))
    return [choice for choice in found if choice is not None]


def _blocks_of(model: nn.Module) -> Iterable[nn.Module]:
    if isinstance(model, nn.ModuleList):
        return model
    try:
        layers: nn.ModuleList = find_decoder(model).layers
    except KnobError:
        return (model,)
    return layers


def _choice_of(block: nn.Module) -> Choice | None:
    """What holds k: every module with a whole number `top_k`. Routers that read the config at each call hold none:
    then it is the config that does."""
    holders = [module for module in block.modules() if type(getattr(module, "top_k", None)) is int]
    if holders:
        router = next((m for m in holders if not any(inner in holders for inner in _inside(m))), holders[0])
        experts = _experts_of(router)
        return None if experts is None else Choice(router, experts, tuple((module, "top_k") for module in holders))
    for name, module in block.named_modules():
        config = getattr(module, "config", None)
        key = next((key for key in TOP_K if type(getattr(config, key, None)) is int), None)
        if key and name.rpartition(".")[2] in ("router", "gate"):
            experts = getattr(config, "num_experts", None)
            return Choice(module, experts, ((config, key),)) if type(experts) is int else None
    return None


def _inside(module: nn.Module) -> list[nn.Module]:
    return [inner for inner in module.modules() if inner is not module]


def _experts_of(router: nn.Module) -> int | None:
    weight, count = getattr(router, "weight", None), getattr(router, "num_experts", None)
    if isinstance(weight, torch.Tensor) and weight.ndim == 2 and type(count) is not int:
        return weight.shape[0]
    return count if type(count) is int else None


def find_decoder(model: nn.Module) -> Any:
    """The module whose `layers` are the decoder's blocks."""
    seen: nn.Module = model
    for _ in range(4):  # outer model, inner model, decoder
        if isinstance(getattr(seen, "layers", None), nn.ModuleList):
            return seen
        steps = [getattr(seen, name, None) for name in ("transformer", "language_model", "text_model", "model")]
        inner = seen.get_decoder() if hasattr(seen, "get_decoder") else seen
        seen = inner if inner is not seen else next((step for step in steps if isinstance(step, nn.Module)), None)
        if seen is None:
            break
    raise KnobError(
        f"the model must have a decoder with a list of `layers`: {type(model).__name__} has none. "
        "Give a transformers model or its decoder."
    )
