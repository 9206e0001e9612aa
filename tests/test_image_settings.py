"""What a source says about its images is what its variants do: by the image processor, a variant or flags."""

import json
import shutil
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.variant import export_variant
from importance.prompts import load_processor
from transform.errors import CheckpointError, KnobError
from transform.image_settings import MEAN, RESIZES, STD
from transform.knobs import Knobs
from transform.molmoe import preprocessing
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import DEFAULT
from transform.vision_plan import DEFAULT_POLICY

Copy = Callable[[Path], Path]
STOCK = json.loads((DEFAULT / "preprocessor_config.json").read_text())
PLACES = ["preprocessor_config.json", "processor_config.json", "image_processor"]


def saying(directory: Path, place: str, **settings: Any) -> Path:
    """The checkpoint with an image processor's settings in one of the places."""
    about = STOCK | settings
    if place == "image_processor":
        about, place = {"processor_class": "MolmoProcessor", "image_processor": about}, "processor_config.json"
    (directory / place).write_text(json.dumps(about))
    return directory


@pytest.mark.parametrize("place", PLACES)
def test_the_most_crops_are_those_of_the_image_processor(molmo: Path, copy_of: Copy, place: str) -> None:
    vision = make_plan(read_checkpoint(saying(copy_of(molmo), place, max_crops=4)), Knobs()).vision
    assert vision is not None
    assert vision.max_crops == 4
    assert max(r * c for r, c in vision.tilings) == 4


def test_a_variant_and_its_variants_keep_the_most_crops(molmo: Path, copy_of: Copy, tmp_path: Path) -> None:
    copy = saying(copy_of(molmo), PLACES[0], max_crops=3)
    shutil.copy(DEFAULT / "tokenizer.json", copy)
    export_variant(make_plan(read_checkpoint(copy), Knobs(2)), tmp_path / "v", verify=False)
    assert json.loads((tmp_path / "v" / "processor_config.json").read_text())["max_crops"] == 3
    assert json.loads((tmp_path / "v" / "io.json").read_text())["vision"]["max_crops"] == 3
    again = make_plan(read_checkpoint(tmp_path / "v"), Knobs(1)).vision
    assert again is not None
    assert again.max_crops == 3


def test_a_variants_variant_keeps_its_policy(molmo: Path, tmp_path: Path) -> None:
    """Also where there is no tokenizer to cut pictures with: another export reads it."""
    knobs = Knobs(2, tokens=432, resize="fill", rule="linear")
    export_variant(make_plan(read_checkpoint(molmo), knobs), tmp_path / "v", onnx=False, verify=False)
    again = make_plan(read_checkpoint(tmp_path / "v"), Knobs(1)).vision
    assert again is not None
    assert (again.tokens, again.resize, again.rule) == (432, "fill", "linear")


def test_scoring_sees_pictures_as_the_source_does(tmp_path: Path) -> None:
    shutil.copytree(DEFAULT, tmp_path / "m")
    checkpoint = read_checkpoint(saying(tmp_path / "m", PLACES[0], max_crops=5))
    assert load_processor(checkpoint).max_crops == 5
    saying(tmp_path / "m", PLACES[0], image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(CheckpointError, match="image_mean"):
        load_processor(checkpoint)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("key", "value"),
    [("image_mean", [0.5, 0.5, 0.5]), ("image_mean", 0.5), ("image_mean", ["x"] * 3), ("image_std", [0.5, 0.5, 0.5]),
     ("image_std", STOCK["image_std"][:2]), ("do_normalize", False), ("do_normalize", 1), ("overlap_margins", [2, 2]),
     ("base_image_input_size", [224, 224]), ("image_token_length_h", 16), ("image_token_length_w", 11),
     ("image_patch_size", 16), ("image_padding_mask", False), ("max_crops", 0), ("max_crops", "12"),
     ("max_crops", True), ("max_crops", 101)],
)  # fmt: skip
def test_other_ways_to_prepare_pictures_are_refused(
    molmo: Path, copy_of: Copy, place: str, key: str, value: object
) -> None:
    checkpoint = read_checkpoint(saying(copy_of(molmo), place, **{key: value}))
    with pytest.raises(CheckpointError, match=key):
        make_plan(checkpoint, Knobs(tokens=432) if key != "max_crops" else Knobs())


def test_means_and_deviations_are_those_that_pictures_are_prepared_with() -> None:
    np.testing.assert_array_equal(np.array([MEAN, STD], np.float32), [preprocessing.MEAN, preprocessing.STD])


def test_the_words_of_a_policy_are_those_that_pictures_are_cut_by() -> None:
    usual = signature(preprocessing.preprocess).parameters
    assert RESIZES == preprocessing.RESIZES
    assert (usual["resize"].default, usual["rule"].default) == DEFAULT_POLICY


def test_settings_as_released_change_nothing(molmo: Path, copy_of: Copy) -> None:
    plain = make_plan(read_checkpoint(molmo), Knobs()).vision
    for place in PLACES:
        assert make_plan(read_checkpoint(saying(copy_of(molmo), place)), Knobs()).vision == plain


@pytest.fixture
def filled(molmo: Path, copy_of: Copy, tmp_path: Path) -> Path:
    """A variant that fills, by the linear rule."""
    copy = copy_of(molmo)
    shutil.copy(DEFAULT / "tokenizer.json", copy)
    plan = make_plan(read_checkpoint(copy), Knobs(tokens=432, resize="fill", rule="linear"))
    export_variant(plan, tmp_path / "filled", onnx=False, verify=False)
    return tmp_path / "filled"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [((None, None), ("fill", "linear")), (("pad", None), ("pad", "linear")), ((None, "canvas"), ("fill", "canvas")),
     (("pad", "canvas"), ("pad", "canvas")), (("fill", None), ("fill", "linear"))],
)  # fmt: skip
def test_what_is_said_about_images_counts_and_the_rest_stays(
    filled: Path, said: tuple[str | None, str | None], wanted: tuple[str, str]
) -> None:
    vision = make_plan(read_checkpoint(filled), Knobs(resize=said[0], rule=said[1])).vision
    assert vision is not None
    assert (vision.tokens, vision.resize, vision.rule) == (432, *wanted)


@pytest.mark.parametrize("said", [{"resize": "pad"}, {"rule": "canvas"}, {"resize": "fill"}])
def test_models_without_eyes_take_no_word_about_images(olmoe: Path, said: dict[str, Any]) -> None:
    with pytest.raises(KnobError, match=f"got {next(iter(said))}"):
        make_plan(read_checkpoint(olmoe), Knobs(**said))
