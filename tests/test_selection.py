"""The selection strategies under the names that programs import, and the choice a user makes on the command line."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from export.command.search import protected_blocks
from importance import (
    choose_blocks,
    find_scores,
    keep_top_k,
    load_preset,
    select_by_threshold,
    select_sequential_blocks,
    select_top_k_blocks,
)
from importance.scores import Scores
from tests.support.zoo import make
from transform.depth import DropBlocks
from transform.errors import KnobError, ScoresError
from transform.read import read_checkpoint

TOY = [0.1, 0.5, 0.4, 0.9, 0.2, 0.05]


def preset(name: str) -> Scores:
    found = load_preset(name, 16)
    assert isinstance(found, Scores)
    return found


def kept(mask: list[bool]) -> list[int]:
    assert all(type(active) is bool for active in mask)
    return [block for block, active in enumerate(mask) if active]


def test_top_k_keeps_first_last_and_the_best() -> None:
    assert kept(select_top_k_blocks(TOY, 3)) == [0, 3, 5]
    assert kept(select_top_k_blocks(TOY, 4)) == [0, 1, 3, 5]
    assert kept(select_top_k_blocks(TOY, 3, keep_first=False, keep_last=False)) == [1, 2, 3]
    assert kept(select_top_k_blocks(TOY, 1, keep_first=False, keep_last=False)) == [3]
    assert kept(select_top_k_blocks(TOY, 2, keep_last=False)) == [0, 3]
    assert kept(select_top_k_blocks(TOY, 2)) == [0, 5]
    assert kept(select_top_k_blocks(TOY, 6)) == [0, 1, 2, 3, 4, 5]


def test_choices_are_nested() -> None:
    chosen = [set(kept(select_top_k_blocks(TOY, k))) for k in range(2, 7)]
    assert all(smaller < larger for smaller, larger in pairwise(chosen))


def test_of_equal_scores_the_earlier_block_stays() -> None:
    assert kept(select_top_k_blocks([1.0] * 6, 4)) == [0, 1, 2, 5]
    assert keep_top_k({4: 1.0, 3: 1.0, 2: 1.0, 1: 1.0}, 3, 6) == (0, 1, 5)


@pytest.mark.parametrize("convert", [list, tuple, "array", "tensor", "mapping", "words", "scores"])
def test_scores_may_come_in_any_container(convert: Any) -> None:
    import numpy as np
    import torch

    containers: dict[str, Callable[[], Any]] = {
        "array": lambda: np.array(TOY),
        "tensor": lambda: torch.tensor(TOY),
        "mapping": lambda: dict(enumerate(TOY)),
        "words": lambda: {str(block): value for block, value in enumerate(TOY)},
        "scores": lambda: Scores(dict(enumerate(TOY))),
    }
    scores = containers[convert]() if isinstance(convert, str) else convert(TOY)
    assert kept(select_top_k_blocks(scores, 4)) == [0, 1, 3, 5]


def test_fourteen_scores_of_a_sixteen_block_model() -> None:
    """The number of blocks is never inferred from a partial file: block 15 must stay, not block 13."""
    measured = preset("vqa-measured")
    assert kept(select_top_k_blocks(measured, 12, n_layers=16)) == [0, 1, 2, 5, 6, 8, 9, 10, 11, 13, 14, 15]
    with pytest.raises(ScoresError, match="Give n_layers"):
        select_top_k_blocks(measured, 12)


def test_a_block_without_a_score_cannot_be_ranked() -> None:
    with pytest.raises(ScoresError, match="3 have none: 2, 4, 6"):
        keep_top_k({1: 0.5, 3: 0.2, 5: 0.3}, 4, 8)
    with pytest.raises(ScoresError, match="2 have none: 0, 3"):
        keep_top_k({1: 0.5, 2: 0.2}, 3, 4, keep_first=False, keep_last=False)
    assert keep_top_k({}, 2, 4) == (0, 3)  # nothing to rank
    assert keep_top_k({}, 4, 4) == (0, 1, 2, 3)


@pytest.mark.parametrize("k", [0, -1, 7, 2.0, True, "3"])
def test_an_impossible_number_of_blocks(k: Any) -> None:
    with pytest.raises(KnobError, match="from 1 to 6"):
        select_top_k_blocks(TOY, k)


def test_one_block_cannot_be_both_the_first_and_the_last() -> None:
    with pytest.raises(KnobError, match=r"at least 2 blocks.*got 1.*--keep-blocks.*keep_last=False"):
        select_top_k_blocks(TOY, 1)
    assert keep_top_k({}, 1, 1) == (0,)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "x", None])
def test_scores_that_are_no_numbers(wrong: Any) -> None:
    with pytest.raises(ScoresError, match="block 1 has"):
        select_top_k_blocks([0.1, wrong, 0.3], 2)
    with pytest.raises(ScoresError):
        select_top_k_blocks([], 1)
    with pytest.raises(ScoresError, match="n_layers=4, scores=3"):
        select_top_k_blocks([0.1, 0.2, 0.3], 2, n_layers=4)
    with pytest.raises(ScoresError, match="blocks 0 to 2"):
        select_top_k_blocks({5: 0.1}, 2, n_layers=3)
    both: Any = {"1": 0.1, 1: 0.2}
    with pytest.raises(ScoresError, match="2 keys for 1 blocks"):
        select_top_k_blocks(both, 2, n_layers=3)


def test_threshold_is_a_share_of_the_highest_score() -> None:
    assert kept(select_by_threshold(TOY, 0.5)) == [0, 1, 3, 5]
    assert kept(select_by_threshold(TOY, 0.5, keep_first=False, keep_last=False)) == [1, 3]
    assert kept(select_by_threshold(TOY, 0.0)) == [0, 1, 2, 3, 4, 5]
    assert kept(select_by_threshold(TOY, 0.4, relative=False)) == [0, 1, 2, 3, 5]
    assert len(kept(select_by_threshold(preset("exp3-recommended"), 0.1))) == 8  # as documented


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_an_impossible_threshold(threshold: float) -> None:
    with pytest.raises(KnobError, match="threshold"):
        select_by_threshold(TOY, threshold)


def test_a_threshold_that_decides_nothing() -> None:
    with pytest.raises(KnobError, match="above 0"):
        select_by_threshold([-1.0, -2.0, 0.0], 0.5)
    with pytest.raises(KnobError, match=r"no score reaches 2.*highest is 0.9"):
        select_by_threshold(TOY, 2.0, keep_first=False, keep_last=False, relative=False)
    with pytest.raises(ScoresError, match="have none: 2"):
        select_by_threshold({1: 0.5}, 0.5, n_layers=4)


def test_sequential_keeps_the_last_block_too() -> None:
    assert kept(select_sequential_blocks(6, 4)) == [0, 1, 2, 5]
    assert kept(select_sequential_blocks(6, 4, keep_last=False)) == [0, 1, 2, 3]
    assert kept(select_sequential_blocks(6, 6)) == [0, 1, 2, 3, 4, 5]
    assert kept(select_sequential_blocks(1, 1)) == [0]
    for wrong in (0, 1, 7):
        with pytest.raises(KnobError, match="from 2 to 6"):
            select_sequential_blocks(6, wrong)


def test_lists_of_blocks() -> None:
    assert choose_blocks(4) == (0, 1, 2, 3)
    assert choose_blocks(4, keep=[3, 1]) == (1, 3)
    assert choose_blocks(4, drop=[0, 3]) == (1, 2)
    assert choose_blocks(4, blocks=4) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"blocks": 0}, "from 1 to 4 .*got 0"),
        ({"blocks": 5}, "from 1 to 4 .*got 5"),
        ({"blocks": 3, "keep": [0]}, "--blocks, --keep-blocks"),
        ({"keep": [0], "drop": [1]}, "--keep-blocks, --drop-blocks"),
        ({"keep": [4]}, "0 to 3 .*4 blocks.*got 4"),
        ({"keep": [-1]}, "got -1"),
        ({"drop": [1, 1]}, "1 more than once"),
        ({"drop": [0, 1, 2, 3]}, "at least one block must stay"),
        ({"keep": []}, "at least one block index"),
        ({"drop": []}, "at least one block index"),
    ],
)
def test_an_impossible_choice(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(KnobError, match=words):
        choose_blocks(4, **asked)


def test_a_number_without_scores_is_never_a_silent_prefix(molmo: Path) -> None:
    """Trap 5 of the reference: it took the first N blocks, which drops the last one."""
    with pytest.raises(ScoresError, match=r"no scores.json.*--scores FILE.*preset:NAME.*--keep-blocks"):
        choose_blocks(4, blocks=3)
    with pytest.raises(ScoresError, match=r"no scores.json.*--scores FILE.*knobcast score.*--keep-blocks"):
        choose_blocks(read_checkpoint(molmo), blocks=3)  # presets are of 16 blocks


def test_blocks_that_a_family_needs_stay_whatever_their_score_is(tmp_path: Path) -> None:
    """Qwen3-VL's first two get features of pictures here."""
    checkpoint = read_checkpoint(make("qwen3_vl_moe", tmp_path / "model"))
    scores = Scores({1: -1.0, 2: 4.0, 3: 3.0, 4: 2.0})
    assert choose_blocks(checkpoint, blocks=4, scores=scores) == (0, 1, 2, 5)
    assert choose_blocks(checkpoint, blocks=3, scores=Scores({2: 1.0, 3: 1.0, 4: 1.0})) == (0, 1, 5)
    with pytest.raises(KnobError, match=r"first 2 blocks of this model must stay.*at least 3 blocks are kept, got 2"):
        choose_blocks(checkpoint, blocks=2, scores=scores)
    with pytest.raises(KnobError, match="first 2 blocks of a 'qwen3_vl_moe' model must stay"):
        DropBlocks(choose_blocks(checkpoint, drop=[1])).requires(checkpoint)
    for said, kept in ((None, (0, 1, 5)), ("none", (0, 1)), ("3", (0, 1, 3))):  # of a search
        assert protected_blocks(said, checkpoint) == frozenset(kept)


def test_scores_are_found_beside_the_model(molmo: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).symlink_to(molmo / name)
    checkpoint = read_checkpoint(model)
    (model / "scores.json").write_text('{"1": 0.5, "2": 0.1}')
    other = tmp_path / "other.json"
    other.write_text('{"1": 0.1, "2": 0.5}')
    assert choose_blocks(checkpoint, blocks=3) == (0, 1, 3)
    assert choose_blocks(checkpoint, blocks=3, scores=other) == (0, 2, 3)
    assert choose_blocks(checkpoint, blocks=3, scores=str(other)) == (0, 2, 3)
    assert choose_blocks(checkpoint, blocks=3, scores=Scores({1: 1.0, 2: 2.0})) == (0, 2, 3)
    with pytest.raises(ScoresError, match="16 blocks, this one has 4"):
        choose_blocks(checkpoint, blocks=3, scores="preset:vqa-measured")
    (model / "scores.json").write_text('{"1": 0.5}')
    with pytest.raises(ScoresError, match="have none: 2"):
        choose_blocks(checkpoint, blocks=3)
    stale = {"schema": 1, "model_digest": "00", "blocks": [{"index": b, "score": b} for b in range(4)]}
    (model / "scores.json").write_text(json.dumps(stale))
    with pytest.raises(ScoresError, match="scores of another model"):
        choose_blocks(checkpoint, blocks=3)
    assert choose_blocks(checkpoint, blocks=4) == (0, 1, 2, 3)  # nothing to rank: not even opened


def test_presets_choose_too() -> None:
    assert choose_blocks(16, blocks=14, scores="preset:exp3-nested") == tuple(b for b in range(16) if b not in (4, 13))
    assert isinstance(find_scores(None, "preset:vqa-measured", 16), Scores)
