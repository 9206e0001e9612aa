"""The tiling gallery: geometry and counts against preprocessing, the pictures that are kept, the command."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.report.gallery import Cutting, overlaps
from export.report.tiles import layout, placed
from export.sweep.pictures import FOLDER, keep_pictures, read_pictures
from importance.samples import EncodedImage, Sample
from tests.support.command import knobcast
from tests.support.pages import parsed, rows
from transform.molmoe import preprocessing
from transform.molmoe.pictures import ImageError
from transform.molmoe.tiling import BudgetError

BUDGETS = (288, 432, 720, 1008, 1296, 1872, "low", "medium", "high", None)


def sizes(count: int) -> list[tuple[int, int]]:
    draws = random.Random(7)
    return [(draws.randint(24, 1500), draws.randint(24, 1500)) for _ in range(count)]


def test_pictures_lie_where_preprocessing_puts_them() -> None:
    """Without resampling: a picture's size on a canvas is preprocessing's own function."""
    draws = random.Random(3)
    for width, height in sizes(1000):
        canvas = (draws.randint(1, 5) * 224 + 112, draws.randint(1, 5) * 224 + 112)
        pixels = np.broadcast_to(np.uint8(0), (height, width, 3))
        for resize in ("pad", "fill"):
            across, down = canvas
            rows_, columns = preprocessing._inner(pixels, (down, across), resize)
            left, top, *size = placed(width, height, canvas, resize)
            assert size == [columns, rows_]
            if resize == "fill":
                assert (left, top) == (-((columns - across) // 2), -((rows_ - down) // 2))
            else:
                assert (left, top) == ((across - columns) // 2, (down - rows_) // 2)


def test_counts_and_masks_are_those_of_real_preprocessing() -> None:
    for width, height in sizes(6):
        for budget in (288, 720, None):
            one = layout(width, height, budget)
            pixels = np.zeros((height, width, 3), np.uint8)
            made = preprocessing.preprocess(pixels, budget)
            assert (one.tiling, one.canvas) == (made.tiling, made.canvas[::-1])
            assert one.features == len(made.feature_index)
            assert one.positions == len(made.image_tokens(1, 2, 3, 4))
            unpadded = np.zeros(made.canvas, bool)
            left, top, across, down = one.picture
            unpadded[top : top + down, left : left + across] = True
            for mask, (x, y, w, h) in zip(made.image_masks, one.tiles, strict=False):
                shares = preprocessing._patches(unpadded[y : y + h, x : x + w, None]).mean(axis=1, dtype=np.float32)
                np.testing.assert_array_equal(mask, shares)


@pytest.mark.parametrize("budget", BUDGETS)
def test_shares_are_those_of_a_raster(budget: int | str | None) -> None:
    for width, height in sizes(3):
        for resize in ("pad", "fill"):
            one = layout(width, height, budget, resize=resize)
            across, down = one.canvas
            seen = np.zeros((down, across), int)
            for x, y, w, h in one.tiles:
                seen[y : y + h, x : x + w] += 1
            assert seen.min() == 1
            assert one.overlap == pytest.approx((seen > 1).mean())
            drawn = np.zeros_like(seen)
            for x, y, w, h in overlaps(one):
                drawn[y : y + h, x : x + w] += 1
            np.testing.assert_array_equal(drawn, seen > 1)  # each spot shaded once
            left, top, w, h = one.picture
            shown = max(0, min(left + w, across) - max(left, 0)) * max(0, min(top + h, down) - max(top, 0))
            assert one.padding == pytest.approx(1 - shown / (across * down))
            assert one.cut == pytest.approx(1 - shown / (w * h))


def test_an_impossible_budget_is_refused() -> None:
    with pytest.raises(BudgetError, match="multiple of 144"):
        Cutting((300,)).budgets and layout(10, 10, 300)


def test_a_picture_too_thin_is_refused_as_preprocessing_does() -> None:
    with pytest.raises(ImageError, match="at least 1 pixel on the canvas: 5000×2") as ours:
        layout(5000, 2, 288)
    with pytest.raises(ImageError) as theirs:
        preprocessing.preprocess(np.zeros((2, 5000, 3), np.uint8), 288)
    assert str(ours.value) == str(theirs.value)
    assert layout(5000, 2, 288, resize="fill").padding == 0


def encoded(size: tuple[int, int], colour: int) -> EncodedImage:
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(buffer, "png")
    return EncodedImage(buffer.getvalue())


def test_kept_pictures_differ_in_shape_first(tmp_path: Path) -> None:
    square = encoded((2000, 2000), 1)
    samples = [
        Sample("a", (square,), "?"),
        Sample("b", (square,), "?"),
        Sample("c", (encoded((90, 90), 2),), "?"),
        Sample("text", (), "?"),
        Sample("d", (encoded((300, 100), 3),), "?"),
    ]
    keep_pictures(samples, tmp_path, most=2)
    kept = read_pictures(tmp_path)
    assert [(one.name, one.width, one.height) for one in kept] == [("of a", 2000, 2000), ("of d", 300, 100)]
    with Image.open(io.BytesIO(kept[0].jpeg)) as opened:
        assert opened.size == (512, 512)
    keep_pictures(samples, tmp_path, most=3)
    assert [one.name for one in read_pictures(tmp_path)] == ["of a", "of d", "of c"]


def test_without_pictures_nothing_is_written(tmp_path: Path) -> None:
    keep_pictures([Sample("text", (), "?")], tmp_path)
    assert list(tmp_path.iterdir()) == [] and read_pictures(tmp_path) == ()
    assert not (tmp_path / FOLDER).exists()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (640, 480), "green").save(tmp_path / "a <b>.png")
    return tmp_path / "a <b>.png"


def test_the_command_draws_every_budget(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiling.html"
    done = knobcast("tile", photo, "--tokens", "288,432,720,1008", "--out", out)
    assert (done.code, done.err) == (0, "")
    assert "1,008   704" in " ".join(done.out.split(" ")) or "704" in done.out
    page = parsed(out.read_text("utf-8"))
    found = rows(page.all("table")[0])
    counted = [(row["budget"], row["nominal tokens"], row["image features in the sequence"]) for row in found]
    assert counted == [("288", "288", "288"), ("432", "432", "384"), ("720", "720", "544"), ("1008", "1,008", "704")]
    drawings = [one for one in page.all("svg") if one.attributes.get("role") == "img"]
    tiles = [len([r for r in one.all("rect") if r.attributes["class"] == "tile inner"]) for one in drawings]
    assert tiles == [1, 2, 4, 6]
    assert page.all("h3")[0].text.startswith("a <b>.png")
    assert knobcast("tile", photo, "--out", out).code == 1


def test_the_command_says_the_numbers(photo: Path, tmp_path: Path) -> None:
    done = knobcast("tile", photo, "--tokens", "low,1008", "--resize", "fill", "--rule", "linear", "--json", "--out",
                    tmp_path / "x.html")  # fmt: skip
    found = json.loads(done.out)["pictures"][0]["budgets"]
    assert [one["budget"] for one in found] == ["low", 1008]
    assert found[1]["padding"] == 0 and found[1]["cut"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tokens", "288,300"], "multiple of 144"),
        (["--tokens", "288,288"], "different budgets"),
        (["--tokens", "288,"], "got ''"),
        (["--resize", "stretch"], "resize must be one of"),
        (["--rule", "square"], "rule must be one of"),
    ],
)
def test_what_cannot_be_is_refused(photo: Path, tmp_path: Path, words: list[str], said: str) -> None:
    done = knobcast("tile", photo, "--out", tmp_path / "x.html", *words)
    assert done.code == 1 and said in done.said, done.err
    assert not (tmp_path / "x.html").exists()


def test_unreadable_pictures_are_named(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    done = knobcast("tile", photo, tmp_path / "bad.png", "--out", tmp_path / "x.html")
    assert done.code == 1 and "bad.png" in done.said and not (tmp_path / "x.html").exists()
