"""Vision tokens of stock models: what a plan says, what a variant's processor file holds, what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import transformers

from export.files.card_pictures import pixel_words
from export.variant import travelling
from tests.support.processors import FILE, NESTED, add_processor, processor_settings
from tests.support.released import release, write_release
from transform.architectures import architecture_named
from transform.architectures.read import known_model_types
from transform.errors import CheckpointError, KnobError
from transform.knobs import Knobs
from transform.picture_processor import write_budget, written_budget
from transform.plan import Plan, make_plan
from transform.read import read_checkpoint

RELEASED = ("qwen3_vl_moe", "glm4v_moe", "qwen3_5_moe")
BOUNDS = {"qwen3_vl_moe": (196608, 262144), "qwen3_5_moe": (196608, 262144), "glm4v_moe": (301056, 401408)}


def model(name: str, directory: Path, changes: Mapping[str, object] | None = None, video: bool = True) -> Path:
    return add_processor(write_release(directory / name, release(name).plain), video, changes)


def planned(directory: Path, tokens: int | str | None = 256, **knobs: str) -> Plan:
    return make_plan(read_checkpoint(directory), Knobs(4, tokens=tokens, **knobs))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RELEASED)
def test_a_budget_is_planned_as_bounds_of_the_processor(name: str, tmp_path: Path) -> None:
    plan = planned(model(name, tmp_path))
    facts = plan.as_dict()["pixels"]
    assert plan.name.endswith("-t256")
    assert (facts["shortest_edge"], facts["longest_edge"]) == BOUNDS[name]
    assert (facts["least"], facts["most"], facts["files"]) == (192, 256, [FILE])
    assert pixel_words(facts).startswith("192 to 256 for a picture up to 5:1; no more than 256 below ")
    assert not [warning for warning in plan.warnings if "videos" in warning or "tokens are more" in warning]


def written(plan: Plan, directory: Path) -> None:
    """The side files of a variant: what `write_checkpoint` copies, with the budget."""
    assert plan.pictures is not None
    directory.mkdir()
    for file in travelling(plan).side_files:
        (directory / file).write_bytes((plan.source.path / file).read_bytes())
    write_budget(directory, plan.pictures)


def test_nothing_but_the_bounds_changes(tmp_path: Path) -> None:
    source = model("qwen3_vl_moe", tmp_path)
    written(planned(source), tmp_path / "variant")
    before, after = (json.loads((place / FILE).read_text()) for place in (source, tmp_path / "variant"))
    assert list(after) == list(before)
    assert list(after["size"].items()) == [("longest_edge", 262144), ("shortest_edge", 196608)]
    assert after | {"size": before["size"]} == before
    video = f"video_{FILE}"
    assert (tmp_path / "variant" / video).read_bytes() == (source / video).read_bytes()


def test_older_and_nested_spellings_get_the_bounds_too(tmp_path: Path) -> None:
    source = model("qwen3_vl_moe", tmp_path, {"size": {"height": 7, "width": 7}, "min_pixels": 9, "max_pixels": 99})
    nested = {"image_processor": processor_settings(source), "video_processor": {"size": {"longest_edge": 5}}}
    (source / NESTED).write_text(json.dumps(nested | {"processor_class": "Qwen3VLProcessor"}))
    plan = planned(source)
    assert plan.as_dict()["pixels"]["files"] == [NESTED, FILE]
    written(plan, tmp_path / "variant")
    found = json.loads((tmp_path / "variant" / FILE).read_text())
    assert (found["min_pixels"], found["max_pixels"]) == (196608, 262144)
    assert found["size"] == {"shortest_edge": 196608, "longest_edge": 262144}
    inner = json.loads((tmp_path / "variant" / NESTED).read_text())
    assert inner["image_processor"]["size"] == {"longest_edge": 262144, "shortest_edge": 196608}
    assert inner["video_processor"] == nested["video_processor"]


def test_a_variant_holds_what_was_planned(tmp_path: Path) -> None:
    """What `verify` reads back; a variant of it keeps the files as they are."""
    source = model("qwen3_vl_moe", tmp_path)
    plan = planned(source)
    assert plan.pictures is not None
    pixels = plan.target.architecture.pixels
    assert pixels is not None
    write_budget(source, plan.pictures)
    checkpoint = read_checkpoint(source)
    assert written_budget(checkpoint, pixels) == plan.pictures
    assert make_plan(checkpoint, Knobs(4)).pictures is None
    (source / "manifest.json").write_text(json.dumps({"pixels": {"tokens": 256}}))
    assert make_plan(checkpoint, Knobs(4)).pictures == plan.pictures
    for size in ((196608, 262145), (0, 0), (768 << 50, 1024 << 50)):
        add_processor(source, changes={"size": dict(zip(("shortest_edge", "longest_edge"), size, strict=True))})
        with pytest.raises(CheckpointError, match="size must be a budget, 1024 pixels per token"):
            written_budget(checkpoint, pixels)


@pytest.mark.parametrize(
    ("changes", "knobs", "words"),
    [
        ({}, {"tokens": "low"}, "must be a whole number, tiers are of tilings"),
        ({}, {"tokens": 12}, "The next budget that is kept is 40"),
        ({}, {"tokens": 10**9}, "The largest budget that fits is 262014"),
        ({}, {"resize": "fill"}, "resize and rule are about tilings"),
        ({"do_resize": False}, {}, "do_resize must not be false"),
        ({"patch_size": 14}, {}, "patch_size must be 16 as in config.json, it is 14"),
        ({"image_processor_type": "CLIPImageProcessor"}, {}, "image_processor_type must be Qwen2VLImageProcessor"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    changes: dict[str, object], knobs: dict[str, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises((KnobError, CheckpointError), match=words):
        planned(model("qwen3_vl_moe", tmp_path, changes), **knobs)


def test_no_processor_no_budget(tmp_path: Path) -> None:
    source = model("qwen3_vl_moe", tmp_path)
    (source / FILE).unlink()
    with pytest.raises(KnobError, match=f"neither {FILE} nor {NESTED} with image_processor"):
        planned(source)


@pytest.mark.parametrize(
    ("name", "words"), [("gemma4", "nothing is known here of how"), ("qwen3_moe", "see no images")]
)
def test_other_families_say_why_not(name: str, words: str, tmp_path: Path) -> None:
    config = release(name).plain | ({"vision_config": {}} if name == "gemma4" else {})
    with pytest.raises(KnobError, match=words):
        make_plan(read_checkpoint(write_release(tmp_path / name, config)), Knobs(tokens=256))


def test_more_than_the_source_gives_and_videos_are_warned_of(tmp_path: Path) -> None:
    size = {"longest_edge": 100 * 1024, "shortest_edge": 65536}
    warnings = planned(model("qwen3_vl_moe", tmp_path, {"size": size}, video=False)).warnings
    assert any("256 tokens are more than the source's processor gives a picture, 100" in line for line in warnings)
    assert any("videos have no settings of their own" in line for line in warnings)


def test_every_budget_is_of_a_processor_that_transformers_has() -> None:
    having = [name for name in known_model_types() if architecture_named(name).pixels]
    assert having == ["ernie4_5_vl_moe", "glm4v_moe", "qwen3_5_moe", "qwen3_vl_moe"]
    for name in having:
        pixels = architecture_named(name).pixels
        assert pixels is not None
        for kind in pixels.processors:
            assert getattr(transformers, f"{kind}Pil").merge_size == pixels.usual["merge"]
            assert getattr(transformers, f"{kind}Pil").temporal_patch_size == pixels.usual["frames"]
