"""Every family with a data file: variants of tiny checkpoints equal the full model with blocks left out, exactly.

The reference is transformers' own model in which dropped blocks are replaced by identities in place, so that nothing
can shift, and every router has its k. The variant is loaded by the class that its config names.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.support.stock_models import logits, looked_at
from tests.support.stock_models import one_thread as one_thread
from tests.support.zoo import CORE, KS, ZOO, cases, make
from transform.architectures import architecture_named, known_model_types
from transform.errors import KnobError
from transform.knobs import Knobs
from transform.load import load_with_report
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.runtime import knobs_at_run_time
from transform.write import write_checkpoint

ROWS = [pytest.param(name, marks=() if name in CORE else pytest.mark.extra) for name in ZOO]


@pytest.mark.parametrize("name", ROWS)
def test_a_variant_is_the_full_model_without_blocks(name: str, tmp_path: Path) -> None:
    kept = cases(ZOO[name].boundary)
    assert compared(make(name, tmp_path / "source"), kept, tmp_path) == ZOO[name].refused(kept, KS)


def test_a_variant_of_the_family_with_code_of_its_own_is_too(molmo: Path, tmp_path: Path) -> None:
    assert not compared(molmo, cases(None, 4), tmp_path)


def compared(source: Path, kept: Mapping[str, tuple[int, ...]], folder: Path) -> set[tuple[str, int | None]]:
    """Every case with every k, written, loaded and equal; returns those that were refused."""
    checkpoint = read_checkpoint(source)
    model, report = load_with_report(source, attn_implementation="eager", experts_implementation="eager")
    assert not (report.missing or report.mismatched)
    assert all(checkpoint.is_beyond(tensor) for tensor in report.unexpected)
    refused, proven, whole = set[tuple[str, int | None]](), 0, logits(model)
    for case, keep in kept.items():
        for k in KS:
            try:
                plan = make_plan(checkpoint, Knobs(k, keep))
            except KnobError:
                refused.add((case, k))
                continue
            place = folder / f"{case}-{k}".replace(" ", "-")
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
    assert proven
    assert torch.equal(logits(model), whole)  # all knobs were put back
    return refused


def test_every_family_has_a_row() -> None:
    """A data file means that somebody ran its row."""
    stock = {name for name in known_model_types() if not architecture_named(name).images}
    assert stock == {name.partition("-")[0] for name in ZOO}
