"""Stock models as tests look at them: on one thread, blocks left out in place, k set on everything that has one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from transform.choices import find_choices, find_decoder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads would wait for each other at these sizes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def logits(model: nn.Module) -> torch.Tensor:
    """[1, 24, V]: longer than every window."""
    ids = torch.randint(3, 190, (1, 24), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


class Identity(nn.Module):
    """In the place of a block: the stream goes through, in the shape that the block gives it back in."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["block"] = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return hidden


@contextmanager
def looked_at(model: nn.Module, keep: tuple[int, ...], k: int | None) -> Iterator[None]:
    """The full model with other blocks as identities and k set on everything that has one."""
    layers = find_decoder(model).layers
    choices = find_choices(layers)
    before = [choice.k for choice in choices]
    blocks = list(layers)
    try:
        if k is not None:
            for choice in choices:
                choice.set(k)
        for i, block in enumerate(blocks):
            if i not in keep:
                layers[i] = Identity(block)
        yield
    finally:
        for i, block in enumerate(blocks):
            layers[i] = block
        for choice, value in zip(choices, before, strict=True):
            choice.set(value)
