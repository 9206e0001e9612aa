"""Preprocessing against every published record, torch's own resize, and pictures of all kinds."""

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from tests.support.paths import FIXTURES
from tests.support.pictures import synthetic_image
from transform.molmoe import tiling
from transform.molmoe.pictures import ImageError, open_image
from transform.molmoe.preprocessing import Preprocessed, preprocess, resize_for_target_vision_tokens
from transform.molmoe.resampling import resize

IDS = {"start": 50280, "end": 50281, "patch": 50282, "column": 50283}


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def load(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / name).read_text())


def check_record(made: Preprocessed, record: dict[str, Any], points: list[list[int]]) -> None:
    """Integers and masks exactly; every crop by its raw points (1e-5) and its sums (1e-5 a value on average)."""
    assert list(made.tiling) == record["tiling_rows_cols"]
    assert list(made.canvas) == record["canvas_hw"]
    assert made.images.shape == (record["num_crops_incl_global"], 576, 588)
    assert made.images.dtype == made.image_masks.dtype == np.float32
    assert sha256(made.image_masks) == record["mask_sha256_float32"]
    assert made.image_input_idx.dtype == np.int32
    assert sha256(made.image_input_idx) == record["image_input_idx_sha256_int32"]
    assert sha256(made.image_tokens(**IDS)) == record["tokens_sha256_int32"]
    p, q = np.mgrid[:576, :588]
    weights = ((31 * p + 17 * q) % 97 - 48) / 97
    images = made.images.astype(np.float64)
    # the published sums have 9 digits; a systematic error of 1e-6 would show
    np.testing.assert_allclose(images.sum(axis=(1, 2)), record["crops"]["sum"], rtol=1e-8, atol=0.05)
    np.testing.assert_allclose((images * weights).sum(axis=(1, 2)), record["crops"]["weighted_sum"], rtol=0, atol=0.05)
    for crop, expected in zip((made.images[0], made.images[-1]), record["crops"]["points"], strict=True):
        np.testing.assert_allclose([crop[a, b] for a, b in points], expected, rtol=0, atol=1e-5)


STOCK = load("preprocess_stock.json")
EXACT = load("preprocess_exact.json")


@pytest.mark.parametrize("record", STOCK["records"], ids=lambda r: f"{r['width']}x{r['height']}")
def test_stock_record(record: dict[str, Any]) -> None:
    image = synthetic_image(record["width"], record["height"], record["seed"])
    assert sha256(image) == record["image_sha256_uint8"]
    if "reference_error" in record:
        attempted = record["scaled_hw_attempted"][0]
        with pytest.raises(ImageError, match=f"becomes {attempted[1]}×{attempted[0]}"):
            preprocess(image)
        return
    made = preprocess(image)
    check_record(made, record, STOCK["points_patch_pixel"])
    np.testing.assert_allclose(made.images.min(), record["crops"]["min"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(made.images.max(), record["crops"]["max"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", ["pad", "fill"])
@pytest.mark.parametrize("crops", range(1, 13))
def test_exact_records(crops: int, how: str) -> None:
    chosen = [r for r in EXACT["records"] if r["num_crops"] == crops and r["resize"] == how]
    assert chosen
    for record in chosen:
        image = synthetic_image(record["width"], record["height"], record["seed"])
        made = preprocess(image, tokens=(crops + 1) * 144, resize=how, rule="linear")
        check_record(made, record, EXACT["points_patch_pixel"])


def test_published_arrays() -> None:
    arrays = load_file(FIXTURES / "preprocess_arrays.safetensors")
    seeds = {(r["width"], r["height"]): r["seed"] for r in STOCK["records"]}
    for name in sorted({key.rsplit("/", 1)[0] for key in arrays}):
        width, height = map(int, name.split("/")[1].split("x"))
        made = preprocess(synthetic_image(width, height, seeds[width, height]))
        np.testing.assert_array_equal(made.image_input_idx, arrays[f"{name}/image_input_idx"])
        np.testing.assert_array_equal(made.image_masks, arrays[f"{name}/image_masks"])
        np.testing.assert_array_equal(made.image_tokens(**IDS), arrays[f"{name}/tokens"])
        means = made.images.mean(axis=2, dtype=np.float64)
        np.testing.assert_allclose(means, arrays[f"{name}/patch_mean"], rtol=0, atol=1e-6)


def test_inputs_of_the_end_to_end_cases() -> None:
    cases, inputs = load("parity_cases.json"), load_file(FIXTURES / "parity_inputs.safetensors")
    ids = cases["special_token_ids"]
    names = [n for n, c in cases["cases"].items() if c["kind"] == "end_to_end"]
    assert names
    for name in names:
        case = cases["cases"][name]
        width, height = case["image_size_wh"]
        made = preprocess(synthetic_image(width, height, case["image_seed"]))
        shifted = np.where(made.image_input_idx >= 0, made.image_input_idx + 1, made.image_input_idx)
        theirs = inputs[f"{name}/image_input_idx"][0]
        np.testing.assert_array_equal(np.maximum(shifted, -1), np.maximum(theirs, -1))
        np.testing.assert_array_equal(made.image_masks, inputs[f"{name}/image_masks"][0])
        stream = made.image_tokens(*(ids[f"image_{n}"] for n in ("start", "end", "patch", "col")))
        expected = [ids["bos"], *stream, *cases["texts"][case["text"]]]
        np.testing.assert_array_equal(inputs[f"{name}/input_ids"][0], expected)


def test_published_prompts_with_an_image() -> None:
    prompts = load("prompts.json")
    made = preprocess(synthetic_image(300, 280, 5))
    stream = made.image_tokens(*(prompts["special"][f"<im_{n}>"] for n in ("start", "end", "patch", "col")))
    index = np.where(made.image_input_idx >= 0, made.image_input_idx + 1, made.image_input_idx)
    for record in prompts["records"]:
        text, theirs = record["input_ids_text_only"][1:], record["input_ids_with_image_300x280_seed5"]
        ids = np.array([prompts["bos"], *stream, *text], np.int32)
        assert len(ids) == theirs["length"]
        assert sha256(ids) == theirs["sha256_int32"]
        assert sha256(index) == theirs["image_input_idx_sha256_int32"]


def test_every_patch_token_gets_one_feature() -> None:
    image = synthetic_image(90, 70, 0)
    for tokens in (288, 432, 720, 1008, 1872):
        for rule in ("canvas", "linear"):
            made = preprocess(image, tokens=tokens, rule=rule)
            stream = made.image_tokens(0, 1, 2, 3)
            where = made.image_input_idx.reshape(-1)[made.feature_index]
            np.testing.assert_array_equal(where, np.flatnonzero(stream == 2))
            assert made.feature_index.dtype == np.int64
            assert len(made.feature_index) == tiling.patch_tokens(*made.tiling)


def test_masks_are_shifted_by_one() -> None:
    """The global view is the first crop, yet its mask row of -1 is the last one (the model was trained that way)."""
    made = preprocess(synthetic_image(300, 150, 0), tokens=432)
    np.testing.assert_array_equal(made.image_masks[-1], np.full(576, -1, np.float32))
    assert made.image_masks[0].min() == 0  # the first tile's: letterboxed, in the place of the global view's


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((1, 1), (336, 336)),
        ((480, 640), (784, 1045)),
        ((480, 640), (251, 336)),
        ((1999, 777), (336, 131)),
        ((3, 2), (336, 224)),
        ((20, 4000), (1, 336)),
        ((4000, 20), (336, 1)),
        ((200, 1), (336, 1)),
        ((700, 700), (700, 300)),
        ((65, 129), (64, 128)),
    ],
)
def test_resize_against_torch(size: tuple[int, int], target: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    theirs = torch.nn.functional.interpolate(planes, target, mode="bilinear", antialias=True, align_corners=False)
    ours = resize(image, target)
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0).clamp(0, 1).numpy(), rtol=0, atol=2e-7)
    top, left = target[0] // 3, target[1] // 4
    window = (top, left, target[0] - top, target[1] - left)
    np.testing.assert_array_equal(resize(image, target, window), ours[top:, left:])


def test_tiers_and_fixed_budgets_choose_by_aspect() -> None:
    wide, tall = synthetic_image(300, 150, 0), synthetic_image(150, 300, 0)
    assert preprocess(wide, tokens=432).tiling == (1, 2)
    assert preprocess(tall, tokens=432).tiling == (2, 1)
    assert preprocess(wide, tokens="medium").tiling == (2, 4)
    assert preprocess(wide).tiling == tiling.select_tiling(150, 300)


def test_fill_takes_any_aspect() -> None:
    made = preprocess(synthetic_image(10000, 10, 32), tokens=288, resize="fill")
    assert made.images.shape == (2, 576, 588)
    assert made.image_masks[0].min() == 1
    with pytest.raises(ImageError, match="10000×10"):
        preprocess(synthetic_image(10000, 10, 32), tokens=288)


def test_resized_image_gets_the_tiling_from_the_stock_rule() -> None:
    for size in [(640, 480), (300, 900), (50, 50)]:
        for tokens in (288, 432, 720, 1008, 1872, 500):
            image = Image.fromarray(synthetic_image(*size, 3))
            resized = resize_for_target_vision_tokens(image, tokens)
            made = preprocess(resized)
            assert made.tiling == tiling.crops_to_tiling(tiling.tokens_to_crops(tokens), size)
            assert resized.size == made.canvas[::-1]


def test_resized_image_has_the_pixels_of_the_crops() -> None:
    image = synthetic_image(640, 480, 3)
    direct = preprocess(image, tokens=432)
    detour = preprocess(resize_for_target_vision_tokens(image, 432), tokens=432)
    assert np.abs(direct.images[1:] - detour.images[1:]).max() < 0.5 / 255 / 0.26 + 1e-4  # rounded to 8 bits once


@pytest.mark.parametrize(
    "bad", [{"resize": "stretch"}, {"tokens": 433}, {"max_crops": 0}, {"tokens": 432, "rule": "x"}]
)
def test_refused_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(tiling.BudgetError):
        preprocess(synthetic_image(20, 20, 0), **bad)


# Pictures


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    upright = synthetic_image(30, 20, 1)
    # what a camera stores so that the viewer's transformation gives the upright picture back
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = Image.fromarray(upright)
    stored = stored if undo is None else stored.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(stored, tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(open_image(path), upright)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(open_image(opened), upright)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"])
def test_modes(mode: str) -> None:
    grey = Image.new("L", (3, 2), 255)
    if mode == "PA":
        image = Image.merge("LA", (grey, grey)).convert("PA")
    elif mode in ("La", "RGBa"):
        image = grey.convert(mode.upper()).convert(mode)
    else:
        image = grey.convert(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(open_image(image), np.full((2, 3, 3), 255, np.uint8))


def test_cmyk_and_alpha_files(tmp_path: Path) -> None:
    colours = Image.new("RGB", (64, 64), (200, 40, 90))
    cmyk = open_image(saved(colours.convert("CMYK"), tmp_path / "print.jpg", quality=95))
    assert np.abs(cmyk.astype(int) - (200, 40, 90)).max() <= 4
    half = colours.copy()
    half.putalpha(128)
    np.testing.assert_array_equal(open_image(saved(half, tmp_path / "alpha.png")), np.asarray(colours))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled_not_cut(mode: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]])
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (6, 1), values.astype(kind).tobytes())
    np.testing.assert_array_equal(open_image(image)[0, :, 0], [0, 0, 1, 1, 128, 255])


def test_sixteen_bit_png(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(4, 256)
    path = saved(Image.fromarray(values), tmp_path / "scan.png")
    pixels = open_image(path)
    assert np.abs(pixels[:, :, 0] * 257.0 - values).max() <= 128.5
    assert preprocess(path, tokens=288).tiling == (1, 1)


def test_transparent_palette_does_not_warn(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    path = saved(image, tmp_path / "icon.png", transparency=bytes([0, 128]))
    np.testing.assert_array_equal(open_image(path), np.full((4, 4, 3), (10, 20, 30), np.uint8))


def test_a_single_pixel(tmp_path: Path) -> None:
    made = preprocess(saved(Image.new("RGB", (1, 1), (255, 0, 0)), tmp_path / "dot.png"), tokens=1872)
    assert made.images.shape == (13, 576, 588)


def test_what_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "note.jpg"
    text.write_text("no picture")
    with pytest.raises(ImageError, match=r"note\.jpg is none"):
        open_image(text)
    with pytest.raises(ImageError, match=r"gone\.png"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="readable file"):
        open_image(tmp_path)
    whole = io.BytesIO()
    Image.fromarray(synthetic_image(200, 200, 0)).save(whole, "PNG")
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(ImageError, match="complete and intact"):
        open_image(cut)
    with pytest.raises(ImageError, match="within 16 bits"):
        open_image(Image.new("I", (2, 2), 70000))
    with pytest.raises(ImageError, match="floats"):
        open_image(Image.new("F", (2, 2), 0.5))
    with pytest.raises(ImageError, match="at least 1 pixel"):
        open_image(Image.new("RGB", (0, 4)))
    for array in (np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3), np.float32), np.zeros((0, 2, 3), np.uint8)):
        with pytest.raises(ImageError, match="uint8"):
            open_image(array)
    good = tmp_path / "big.png"
    good.write_bytes(whole.getvalue())
    for most in (30000, 100):  # pillow warns above its limit and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(ImageError, match=f"at most {most} pixels"):
            open_image(good)


def test_no_torch_needed() -> None:
    code = "import sys; import transform.molmoe.preprocessing; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
