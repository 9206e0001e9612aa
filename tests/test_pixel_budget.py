"""Budgets in pixels: the same counts as transformers' processors, and a range that no picture leaves."""

import math
import random
from collections.abc import Callable, Iterator

import pytest
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import smart_resize as ernie
from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize as glm
from transformers.models.glm46v.image_processing_pil_glm46v import smart_resize as later_glm
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as qwen

from transform.architectures.pictures import Fit
from transform.errors import KnobError
from transform.pixel_budget import PixelBudget
from transform.pixel_range import check_budget, kept_to, least, most

Resize = Callable[[PixelBudget, int, int], tuple[int, int]]


def by_area(function: Callable[..., tuple[int, int]]) -> Resize:
    return lambda of, height, width: function(height, width, of.side, of.shortest_edge, of.longest_edge)


def by_clip(function: Callable[..., tuple[int, int]]) -> Resize:
    return lambda of, height, width: function(
        of.frames, height, width, of.frames, of.side, of.shortest_edge, of.longest_edge
    )


KINDS = (
    pytest.param(by_area(qwen), 32, Fit.AREA, 1, id="qwen"),
    pytest.param(by_area(ernie), 28, Fit.AREA, 1, id="ernie"),
    pytest.param(by_clip(glm), 28, Fit.CLIP, 2, id="glm"),
    pytest.param(by_clip(later_glm), 28, Fit.CLIP, 2, id="later glm"),
)


def sizes(count: int, narrowest: float) -> Iterator[tuple[int, int]]:
    """Heights and widths of all areas, some of shapes whose sides are whole before they are rounded."""
    draw = random.Random(5)
    for n in range(count):
        aspect = math.exp(draw.uniform(-math.log(narrowest), math.log(narrowest)))
        side = math.exp(draw.uniform(math.log(8), math.log(4000)))
        yield max(1, round(side / math.sqrt(aspect))), max(1, round(side * math.sqrt(aspect)))
        if n % 3 == 0:
            times = draw.randint(1, 300)
            yield times * draw.randint(1, 16), times * draw.randint(1, 16)


def narrow(height: int, width: int) -> float:
    return max(height, width) / min(height, width)


@pytest.mark.parametrize(("theirs", "side", "fit", "frames"), KINDS)
@pytest.mark.parametrize("tokens", [72, 256, 1000])
def test_counts_are_transformers_own(theirs: Resize, side: int, fit: Fit, frames: int, tokens: int) -> None:
    budget = PixelBudget(tokens, side, fit, frames)
    few, many, kept = least(budget), most(budget), kept_to(budget)
    for size in sizes(1200, 190):
        if narrow(*size) > 190:
            continue
        rows, columns = budget.grid(*size)
        assert (rows * side, columns * side) == theirs(budget, *size), size
        count = budget.count(*size)
        assert narrow(*size) > 5 or few <= count <= many <= tokens, size
        assert narrow(*size) >= kept or count <= tokens, size
        assert least(budget, 200) <= count <= most(budget, 200), size


@pytest.mark.parametrize(("tokens", "few"), [(64, 48), (256, 192), (576, 432), (1024, 768)])
def test_the_ends_of_the_range_are_met(tokens: int, few: int) -> None:
    budget = PixelBudget(tokens, 32)
    assert (budget.shortest_edge, budget.longest_edge) == (768 * tokens, 1024 * tokens)
    assert (least(budget), most(budget)) == (few, tokens)
    counts = {budget.count(height, width) for height in range(20, 900, 7) for width in range(height, 5 * height, 31)}
    assert min(counts) == few
    assert max(counts) >= tokens - 4


def test_beyond_the_aspect_that_keeps_it_a_budget_is_passed() -> None:
    budget = PixelBudget(256, 32)
    kept = kept_to(budget)
    assert 37 < kept < 38
    beyond = [(4, round(4 * kept) + 1 + n) for n in range(8)]
    assert max(budget.count(*size) for size in beyond) > 256
    assert most(budget, 200) > 256 >= most(budget, 37)


def test_where_floating_point_decides_a_picture_is_tried() -> None:
    """3:1 at three quarters of 64 tokens is 4 by 12 exactly; of some sizes transformers makes 5 by 13."""
    budget = PixelBudget(64, 28)
    assert qwen(19, 57, 28, budget.shortest_edge, budget.longest_edge) == (5 * 28, 13 * 28)
    assert most(budget) == 65
    assert most(PixelBudget(64, 32)) == 64


def test_budgets_that_are_not_kept_are_refused_with_the_next_one() -> None:
    check_budget(PixelBudget(64, 32), 1000)
    with pytest.raises(KnobError, match=r"tokens=64 the processor's rounding gives up to 65\. The next .* is 65\."):
        check_budget(PixelBudget(64, 28), 1000)
    with pytest.raises(KnobError, match=r"tokens=12 .* up to 16\. The next .* is 40\."):
        check_budget(PixelBudget(12, 32), 1000)
    with pytest.raises(KnobError, match=r"1000 positions, got tokens=871\. The largest budget that fits is 870\."):
        check_budget(PixelBudget(871, 32), 1000)
    with pytest.raises(KnobError, match=r"from 1, got 0\."):
        check_budget(PixelBudget(0, 32), 1000)


def test_too_narrow_pictures_are_refused_as_by_the_processor() -> None:
    with pytest.raises(ValueError, match="aspect ratio"):
        qwen(10, 2001, 32, 768, 1024)
    with pytest.raises(KnobError, match="at most 200 times"):
        PixelBudget(64, 32).count(10, 2001)
