"""`preprocess.onnx` against the code that every other part is fed by: integers and masks exactly, pixels to 1e-5."""

import json
from collections.abc import Iterator
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest

from export.graph.builder import OPSET
from export.graph.preprocess import preprocess_graph
from tests.support.paths import FIXTURES
from tests.support.pictures import synthetic_image
from transform.arrays import Array
from transform.molmoe.preprocessing import ImageError, choose_tiling, preprocess
from transform.special_tokens import ImageTokens

IDS = ImageTokens(start=50280, end=50281, patch=50282, column=50283)
TOLERANCE = 1e-5
Policy = tuple[int | str | None, int, str, str]  # tokens, max_crops, resize, rule
POLICIES: tuple[Policy, ...] = (
    (None, 12, "pad", "canvas"), (None, 6, "fill", "canvas"), (None, 1, "pad", "canvas"), (288, 12, "pad", "canvas"),
    (288, 12, "fill", "canvas"), (432, 12, "pad", "canvas"), (432, 12, "fill", "linear"), (1008, 12, "pad", "linear"),
    (1872, 12, "pad", "canvas"), (1872, 12, "fill", "canvas"), ("low", 12, "fill", "linear"),
    ("medium", 12, "pad", "linear"), ("medium", 12, "pad", "canvas"), ("high", 12, "pad", "canvas"),
)  # fmt: skip


@cache
def opened(policy: Policy) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(preprocess_graph(IDS, *policy).serialised(), options)


def difference(image: Array, policy: Policy) -> float:
    made = preprocess(image, *policy)
    images, masks, index, ids = opened(policy).run(None, {"image": image})
    assert images.dtype == masks.dtype == np.float32
    assert images.shape == made.images.shape
    np.testing.assert_array_equal(masks, made.image_masks)
    np.testing.assert_array_equal(index, made.feature_index)
    np.testing.assert_array_equal(ids, made.image_tokens(**IDS._asdict()))
    return float(np.abs(images - made.images).max())


def drawn(seed: int) -> tuple[Array, Policy]:
    """A picture of any size from 1x1 to 4000x3000, as many small ones as large ones, and a policy."""
    generator = np.random.default_rng(seed)
    if seed % 2:
        width, height = (int(generator.integers(1, most + 1)) for most in (4000, 3000))
    else:
        width, height = (int(most ** generator.random()) for most in (4000, 3000))
    return generator.integers(0, 256, (height, width, 3), np.uint8), POLICIES[seed % len(POLICIES)]


def compare(seeds: range) -> int:
    """How many of the drawn pictures were compared: those that can be cut."""
    count = 0
    for seed in seeds:
        image, policy = drawn(seed)
        try:
            assert difference(image, policy) <= TOLERANCE, (seed, image.shape, policy)
        except ImageError:  # a side of nothing
            continue
        count += 1
    return count


@pytest.mark.parametrize("size", [(1, 1), (3, 1000), (700, 3), (113, 112), (336, 336), (1280, 721)])
@pytest.mark.parametrize("policy", POLICIES[::2])
def test_equals_the_python_code(size: tuple[int, int], policy: Policy) -> None:
    assert difference(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8), policy) <= TOLERANCE


def test_drawn_sizes() -> None:
    assert compare(range(0, 28, 2)) > 8  # the small ones


@pytest.mark.extra
@pytest.mark.parametrize("start", range(0, 1000, 100))
def test_a_thousand_drawn_sizes(start: int) -> None:
    assert compare(range(start, start + 100)) > 80


def records(name: str) -> Iterator[tuple[Array, Policy]]:
    exact = name == "preprocess_exact.json"
    for record in json.loads((FIXTURES / name).read_text())["records"]:
        image = synthetic_image(record["width"], record["height"], record["seed"])
        if "reference_error" not in record:
            tokens = (record["num_crops"] + 1) * 144 if exact else None
            yield image, (tokens, 12, record.get("resize", "pad"), "linear" if exact else "canvas")


@pytest.mark.parametrize("name", ["preprocess_stock.json", "preprocess_exact.json"])
def test_published_records(name: str) -> None:
    light = [(image, policy) for image, policy in records(name) if image.size < 1_000_000]
    assert len(light) > 10
    assert max(difference(image, policy) for image, policy in light[::6]) <= TOLERANCE


@pytest.mark.extra
@pytest.mark.parametrize("name", ["preprocess_stock.json", "preprocess_exact.json"])
def test_all_published_records(name: str) -> None:
    assert max(difference(image, policy) for image, policy in records(name)) <= TOLERANCE


@pytest.mark.parametrize("policy", [p for p in POLICIES if p[0] in (None, 432, 1872, "high") or p[3] == "linear"])
def test_every_aspect_gets_the_tiling_of_the_python_code(policy: Policy) -> None:
    """Where two tilings are equally near, and one pixel beside."""
    generator = np.random.default_rng(7)
    sides = [(h + i, w + j) for h, w in ((5, 3), (3, 5), (15, 9), (112, 112), (336, 560), (560, 336)) for i in (0, 1)
             for j in (0, 1)] + [tuple(map(int, generator.integers(1, 150, 2))) for _ in range(4)]  # fmt: skip
    for height, width in sides:
        rows, columns = choose_tiling(height, width, policy[0], policy[1], policy[3])
        images, _, _, ids = opened(policy).run(None, {"image": np.zeros((height, width, 3), np.uint8)})
        assert len(images) == rows * columns + 1
        assert (ids == IDS.column).sum() == 12 + 8 * rows + 4


def test_ordinary_operators_alone() -> None:
    model = preprocess_graph(IDS, None).model()
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert len(model.SerializeToString()) < 100_000
    assert preprocess_graph(IDS, "high").serialised() == preprocess_graph(IDS, "high").serialised()


def test_the_runtime_refuses_what_is_no_picture() -> None:
    for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4), np.uint8)):
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            opened(POLICIES[0]).run(None, {"image": wrong})
