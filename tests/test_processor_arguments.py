"""The processor under what programs for many models pass to all of them, and under the published Molmo's names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from export.files.card import write_card
from importance.prompts import load_processor
from tests.support.models import small_tokenizer
from tests.support.pictures import encoded
from transform.knobs import Knobs
from transform.load import load_model
from transform.molmoe import MolmoEProcessor
from transform.molmoe.pictures import ImageError
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import DEFAULT

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
TEXT = "what is this?"


@pytest.fixture(scope="module")
def processor() -> Any:
    return MolmoEProcessor(small_tokenizer(250, image_tokens=True), vision_tokens=288, vocab_size=250)


def same(ours: Any, theirs: Any) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": True},
        {"padding": "longest", "truncation": False},
        {"padding": False},
        {"truncation": True},
        {"truncation": True, "max_length": 400},
        {"padding": None, "max_length": None, "images_kwargs": None, "text_kwargs": {}},
        {"text_kwargs": {"padding": True, "padding_side": "right"}, "common_kwargs": {"return_tensors": "pt"}},
        {"images_kwargs": {"max_crops": 36}},
        {"images_kwargs": {"tokens": 288}},
        {"videos": None, "audio": []},
    ],
    ids=str,
)
def test_the_usual_arguments_change_nothing_that_happens_anyway(processor: Any, arguments: dict[str, Any]) -> None:
    assert same(processor(images=[PICTURE], text=[TEXT], **arguments), processor(TEXT, PIXELS))


def test_the_usual_arguments_are_honoured(processor: Any) -> None:
    plain = processor([TEXT, "this?"])
    padded = processor([TEXT, "this?"], padding="max_length", max_length=12)
    assert padded["input_ids"].shape == (2, 12)
    assert torch.equal(padded["input_ids"][:, :9], plain["input_ids"])
    assert padded["attention_mask"].sum() == plain["attention_mask"].sum()
    assert processor(TEXT, padding="max_length", max_length=4, truncation=False)["input_ids"].shape == (1, 9)
    left = processor([TEXT, "this?"], text_kwargs={"padding_side": "left"}, common_kwargs={"return_tensors": "np"})
    assert isinstance(left["input_ids"], np.ndarray)
    assert left["attention_mask"][1].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert processor(TEXT, PICTURE, images_kwargs={"tokens": 432})["images"].shape[1] == 3
    free = MolmoEProcessor(small_tokenizer(250), vocab_size=250)
    large = Image.fromarray(np.zeros((900, 900, 3), np.uint8))
    assert free(TEXT, large)["images"].shape[1] == 10
    assert free(TEXT, large, images_kwargs={"max_crops": 4})["images"].shape[1] == 5


@pytest.mark.parametrize(
    ("given", "arguments", "error", "words"),
    [
        ([TEXT], {"max_length": 8}, ValueError, "9 tokens for 8. Shorten the prompt"),
        ([TEXT], {"truncation": True, "max_length": 8, "padding": "max_length"}, ValueError, "9 tokens for 8"),
        ([TEXT], {"padding": "max_length"}, ValueError, "needs max_length"),
        ([TEXT], {"padding": "most"}, ValueError, "padding must be True, False, longest or max_length, got 'most'"),
        ([TEXT, "this?"], {"padding": False}, ValueError, "have 7 to 9 tokens. Use padding=True"),
        ([TEXT], {"do_resize": False, "size": 1}, TypeError, "it doesn't know do_resize, size. Leave it out"),
        ([TEXT], {"images_kwargs": {"do_resize": False}}, TypeError, "doesn't know do_resize"),
        ([TEXT], {"videos": ["v.mp4"]}, TypeError, "doesn't know videos"),
        ([TEXT], {"images": PICTURE, "tokens": 432, "max_crops": 1}, ValueError, "vision budget, 2: got 1"),
        ([TEXT], {"images": [[PICTURE, PICTURE]]}, ValueError, "a list of 2 for one prompt. Several images"),
        ([TEXT], {"images": [[PICTURE], [PICTURE]]}, ValueError, "1 prompts and 2 images"),
        ([TEXT], {"images": [7]}, ImageError, "An image must be a path, a PIL image, .* got int"),
        ([TEXT], {"images": torch.zeros(3, 4, 5)}, ImageError, r"uint8 .* got float32 \[4, 5, 3\]"),
        ([TEXT], {"images": torch.zeros(3, 4, 5, dtype=torch.bfloat16)}, ImageError, "must be uint8"),
        ([TEXT], {"images": b"no picture"}, ImageError, "must be a picture that pillow can read"),
        (7, {}, TypeError, "text must be a string or a list of strings, got int. Name the arguments"),
        ([7], {}, TypeError, "got a list of int"),
        (PICTURE, {}, TypeError, "text must be a string"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # pictures print their address
)
def test_what_can_not_be_honoured_is_one_sentence(
    processor: Any, given: Any, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        processor(given, **arguments)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "form",
    [
        lambda: [[PICTURE]],
        lambda: ((PICTURE,),),
        lambda: torch.from_numpy(PIXELS),
        lambda: torch.from_numpy(PIXELS).permute(2, 0, 1),
        lambda: [torch.from_numpy(PIXELS)],
        lambda: PIXELS[None],
        lambda: torch.from_numpy(PIXELS).permute(2, 0, 1)[None],
        lambda: PIXELS.transpose(2, 0, 1),
        lambda: encoded(PICTURE),
        lambda: [[encoded(PICTURE)]],
    ],
    ids=range(10),
)
def test_one_picture_in_any_form(processor: Any, form: Callable[[], Any]) -> None:
    expected = processor(TEXT, PIXELS)
    assert same(processor(text=[TEXT], images=form()), expected)
    assert same(processor(form(), TEXT), expected)  # as other processors order them
    assert same(processor(form(), [TEXT]), expected)


@pytest.mark.parametrize("prompt", ["what is <im_patch>?", "<im_col>", ["this?", "<im_start>"]])
def test_the_images_own_tokens_are_no_prompt(prompt: Any) -> None:
    embedded = load_processor(read_checkpoint(DEFAULT))
    with pytest.raises(ValueError, match="must not contain the image's own tokens"):
        embedded(prompt)
    with pytest.raises(ValueError, match="must not contain the image's own tokens"):
        embedded(prompt, [PICTURE] if isinstance(prompt, str) else [None, PICTURE])
    assert embedded("what is <im_pat>?")["input_ids"].shape[0] == 1


def test_batches_of_lists(processor: Any) -> None:
    expected = processor([TEXT, TEXT, TEXT], [PICTURE, None, PIXELS])
    assert same(processor([TEXT] * 3, [[PICTURE], [], [PIXELS]]), expected)
    assert same(processor([[PICTURE], [], [PIXELS]], [TEXT] * 3), expected)
    assert same(processor([TEXT] * 2, []), processor([TEXT] * 2))
    assert same(processor([TEXT] * 2, np.stack([PIXELS] * 2)), processor([TEXT] * 2, [PIXELS] * 2))


def test_the_published_names(processor: Any) -> None:
    inputs = processor.process(images=[PICTURE], text=TEXT)
    batch = processor(TEXT, PICTURE)
    assert sorted(inputs) == ["image_input_idx", "image_masks", "images", "input_ids"]
    assert all(torch.equal(inputs[name][None], batch[name]) for name in inputs)
    assert sorted(processor.process(text=TEXT, images=None)) == ["input_ids"]
    with pytest.raises(ValueError, match="Several images"):
        processor.process(images=[PICTURE, PICTURE], text=TEXT)
    with pytest.raises(ValueError, match="process takes one prompt, got 2"):
        processor.process(text=[TEXT, TEXT])


def test_a_published_program_answers_as_generate() -> None:
    """With its stopping rule, and with the padding of its own collator."""
    model, own = load_model(DEFAULT), load_processor(read_checkpoint(DEFAULT))
    inputs = {k: v.unsqueeze(0) for k, v in own.process(images=[PICTURE], text="What colour is it?").items()}
    ours = model.generate(**own("What colour is it?", PICTURE), max_new_tokens=8, do_sample=False)
    config = GenerationConfig(max_new_tokens=8, stop_strings="<|endoftext|>")
    output = model.generate_from_batch(inputs, config, tokenizer=own.tokenizer)
    said = own.tokenizer.decode(output[0, inputs["input_ids"].size(1) :], skip_special_tokens=True)
    assert said == own.tokenizer.decode(ours[0, inputs["input_ids"].size(1) :], skip_special_tokens=True) != ""
    padded = {**inputs, "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 4), value=-1)}
    assert torch.equal(model.generate_from_batch(padded, config, tokenizer=own.tokenizer)[:, 4:], output)


def test_the_card_says_what_replaces_what(olmoe: Path, tmp_path: Path) -> None:
    """Of a model with pictures whose weights transformers loads; nothing of it on other cards."""
    cards = []
    for source, form in ((DEFAULT, None), (DEFAULT, "int4"), (olmoe, None)):
        write_card(tmp_path, make_plan(read_checkpoint(source), Knobs(form=form)), None, onnx=False)
        cards.append((tmp_path / "README.md").read_text())
    for name in ("AutoModelForCausalLM", "processor.process(", "model.generate_from_batch("):
        assert name in cards[0]
        assert name not in cards[1]
    assert "generate_from_batch" not in cards[2]
