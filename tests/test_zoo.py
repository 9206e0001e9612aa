"""Every family with a data file: variants of tiny checkpoints equal the full model with blocks left out, exactly.

The reference is transformers' own model in which dropped blocks are replaced by identities in place, so that nothing
can shift, and every router has its k. The variant is loaded by the class that its config names.
"""

from pathlib import Path

import pytest
import torch

from tests.support.stock_models import logits, looked_at
from tests.support.stock_models import one_thread as one_thread
from tests.support.zoo import BLOCKS, CORE, ZOO, K, make
from transform.architectures import architecture_named, known_model_types
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
