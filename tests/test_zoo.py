"""Every family with a data file: variants of tiny checkpoints equal the full model with blocks left out, exactly.

The reference is transformers' own model in which dropped blocks are replaced by identities in place, so that nothing
can shift, and every router has its k. The variant is loaded by the class that its config names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.zoo import BLOCKS, CORE, ZOO, K, make
from transform.architectures import architecture_named, known_model_types
from transform.choices import find_choices, find_decoder
from transform.errors import KnobError
from transform.knobs import Knobs
from transform.load import load_with_report
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.runtime import knobs_at_run_time
from transform.write import write_checkpoint

ROWS = [pytest.param(name, marks=() if name in CORE else pytest.mark.extra) for name in ZOO]
KS = (None, K // 2, 1)


def kept(name: str) -> dict[str, tuple[int, ...]]:
    """Cases of dropped blocks -> the blocks that stay."""
    boundary = ZOO[name].boundary
    dropped = {"none": (), "first": (0,), "middle": (3,), "last two": (BLOCKS - 2, BLOCKS - 1)}
    dropped |= {} if boundary is None else {"boundary": (boundary,)}
    return {case: tuple(i for i in range(BLOCKS) if i not in out) for case, out in dropped.items()}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads would wait for each other at these sizes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ROWS)
def test_a_variant_is_the_full_model_without_blocks(name: str, tmp_path: Path) -> None:
    source = make(name, tmp_path / "source")
    checkpoint = read_checkpoint(source)
    model, report = load_with_report(source, attn_implementation="eager", experts_implementation="eager")
    assert not (report.missing or report.mismatched)
    assert all(checkpoint.is_beyond(tensor) for tensor in report.unexpected)
    refused, proven, whole = [], 0, logits(model)
    for case, keep in kept(name).items():
        for k in KS:
            try:
                plan = make_plan(checkpoint, Knobs(k, keep))
            except KnobError as error:
                refused.append((case, k, str(error)))
                continue
            place = tmp_path / f"{case}-{k}".replace(" ", "-")
            place.mkdir()
            write_checkpoint(plan.target, place)
            with looked_at(model, keep, k):
                theirs = logits(model)
            with knobs_at_run_time(model, keep, plan.target.settings.top_k):
                assert torch.equal(logits(model), theirs), (case, k, "at run time")
            ours, found = load_with_report(place, attn_implementation="eager", experts_implementation="eager")
            beyond = [tensor for tensor in found.unexpected if not checkpoint.is_beyond(tensor)]
            assert not (found.missing or found.mismatched or beyond), (case, k, found)
            assert type(ours) is type(model)
            assert torch.equal(logits(ours), theirs), (case, k, float((logits(ours) - theirs).abs().max()))
            read_checkpoint(place)
            proven += 1
    assert {(case, k) for case, k, _ in refused} == ZOO[name].refused(kept(name), KS), refused
    assert proven
    assert torch.equal(logits(model), whole)  # all knobs were put back


def test_every_family_has_a_row() -> None:
    """A data file means that somebody ran its row."""
    open_ones = {name for name in known_model_types() if not architecture_named(name).complete}
    assert open_ones == {name.partition("-")[0] for name in ZOO}


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
