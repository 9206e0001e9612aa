"""A damaged picture, or a prompt that doesn't fit, is met before anything is asked, and all of them at once."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from importance.evaluate import evaluate_plan
from importance.look import MAX_NAMED, look
from importance.prompts import load_processor, prompts_for
from importance.samples import EncodedImage, Sample, SamplesError
from tests.support.command import knobcast
from tests.support.pictures import encoded
from transform.knobs import Knobs
from transform.molmoe.preprocessing import fitting_tiling
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import DEFAULT

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 520, 3), np.uint8)


def strip() -> bytes:
    """Of which no pixel is left across on the canvas."""
    out = io.BytesIO()
    Image.new("RGB", (10_000, 10)).save(out, "PNG")
    return out.getvalue()


DAMAGED = {
    "half a PNG": encoded(PIXELS)[:100_000],
    "half a JPEG": encoded(PIXELS, "JPEG")[:10_000],
    "half a WebP": encoded(PIXELS, "WEBP")[:10_000],
    "no picture": b"no picture",
    "nothing": b"",
    "a strip": strip(),
}


@pytest.fixture(scope="module")
def prompts() -> Any:
    checkpoint = read_checkpoint(DEFAULT)
    return prompts_for(load_processor(checkpoint), None, checkpoint.architecture.prompt)


def said(samples: list[Sample], prompts: Any, positions: int = 4096, new_tokens: int = 4) -> str:
    with pytest.raises(SamplesError) as caught:
        look(samples, prompts, positions, new_tokens)
    return str(caught.value)


def samples_of(*pictures: bytes) -> list[Sample]:
    return [Sample(f"s{i}", (EncodedImage(data),), "What?", ("x",)) for i, data in enumerate(pictures)]


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_picture_is_named_first(damaged: bytes, prompts: Any) -> None:
    message = said(samples_of(encoded(PIXELS), damaged, encoded(PIXELS)), prompts)
    assert message.startswith("sample 's1': ")
    assert message.endswith("Nothing was asked: leave these samples out, or mend them.")


def test_all_of_them_are_named(prompts: Any) -> None:
    samples = samples_of(encoded(PIXELS), *DAMAGED.values())
    message = said([*samples, replace(samples[1], id="same picture")], prompts)
    assert "The pictures of 's2', 's3', 's4', 's5', 's6' are damaged as well." in message
    assert "same picture" not in message
    message = said(samples_of(*(b"none" + bytes([n]) for n in range(MAX_NAMED + 4))), prompts)
    assert f"'s{MAX_NAMED}' and 3 more are damaged as well" in message


def test_prompts_are_measured(prompts: Any) -> None:
    whole = Sample("long", (EncodedImage(encoded(PIXELS)),), "What is it?", ("x",))
    length = prompts.length(PIXELS) + len(prompts.question(whole)) + 4
    look([whole, replace(whole, id="text", images=())], prompts, length, 4)
    assert f"sample 'long': begin token, image, prompt and answer must fit the model's {length - 1} positions" in said(
        [whole], prompts, length - 1
    )
    assert "'s': a prompt must not contain" in said([replace(whole, id="s", prompt="<im_patch>")], prompts)


@pytest.mark.parametrize("tokens", [None, 288, 720, "low"])
def test_lengths_are_those_of_the_prefix(tokens: Any) -> None:
    checkpoint = read_checkpoint(DEFAULT)
    processor = load_processor(checkpoint)
    found = prompts_for(processor, tokens, checkpoint.architecture.prompt)
    assert found.length(None) == 1
    for height, width in ((300, 520), (40, 40), (600, 90)):
        pixels = np.zeros((height, width, 3), np.uint8)
        seen = processor(text="", images=pixels, tokens=tokens, raw=True)
        assert found.length(pixels) == seen["input_ids"].shape[1]
    assert fitting_tiling(Image.open(io.BytesIO(strip())), 288, 12, resize="fill") == (1, 1)


def test_nothing_is_loaded_first() -> None:
    plan = make_plan(read_checkpoint(DEFAULT), Knobs())
    with pytest.raises(SamplesError, match=r"sample 's1': .*Nothing was asked"):
        evaluate_plan(plan, samples_of(encoded(PIXELS), b"no picture"), say=_refuse_to_load)


def _refuse_to_load(step: str) -> None:
    assert step != "load", "a model was loaded before the pictures were looked at"


def test_the_commands_look_first(tmp_path: Path) -> None:
    for n, data in enumerate((encoded(PIXELS), encoded(PIXELS)[:100_000], encoded(PIXELS))):
        (tmp_path / f"{n}.png").write_bytes(data)
    rows = [{"id": f"q{n}", "image": f"{n}.png", "prompt": "What?", "answers": ["x"]} for n in range(3)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "scores.json"
    for arguments in (["evaluate"], ["score", "--out", out], ["score", "--metric", "kl", "--stream", "--out", out]):
        done = knobcast(*arguments, "--data", tmp_path / "d.jsonl")
        assert done.code == 1
        assert "sample 'q1': The image must be complete and intact" in done.said
        assert "of 3 samples" not in done.said
    assert not out.with_name("scores.json.jobs").exists()
