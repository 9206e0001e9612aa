"""How the embedded model is trained: the pictures, the fast decoder, the packed sequences, runs that go on."""

import copy
import json
import math
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from artifacts.nano import data, decoder, features, language, pictures, vision
from artifacts.nano.build import CONFIG, TARGET
from artifacts.nano.job import Job
from importance.readers.read import read_samples
from importance.samples import Sample
from transform.load import load_model
from transform.molmoe.preprocessing import preprocess


@pytest.fixture(scope="module")
def nano() -> Any:
    return load_model(TARGET)


def test_pictures_repeat_and_splits_share_none() -> None:
    def digests(split: str) -> list[str]:
        return [pictures.digest(shown.draw()) for _, shown, _ in pictures.pictures(split, 40)]

    assert digests("test") == digests("test")
    everything = [digest for split in data.PICTURES for digest in digests(split)]
    assert len(set(everything)) == len(everything)


def test_questions_have_one_true_answer() -> None:
    """Answers, worked out again from the scene in another way."""
    kinds: Counter[str] = Counter()
    for _, shown, asked in pictures.pictures("test", 250):
        for question in asked:
            kinds[question.kind] += 1
            words = question.prompt.rstrip("?").split()
            answer = question.answers[0]
            if question.kind == "count":
                what = words[2]
                found = [t for t in shown.things if what in (t.colour, f"{t.shape}s", f"{t.shape}es")]
                assert answer == str(len(found))
            elif question.kind == "colour":
                assert [t.colour for t in shown.things if t.shape == words[-1]] == [answer]
            elif question.kind == "shape":
                assert [t.shape for t in shown.things if t.colour == words[-1]] == [answer]
            elif question.kind in ("digit", "detail"):
                named = [t for t in shown.things if {t.colour, t.shape} & set(words[4:])]
                assert [str(t.digit) for t in named] == [answer]
                assert ((shown.height, shown.width) in pictures.LARGE) == (question.kind == "detail")
    assert set(kinds) == set(pictures.KINDS)
    assert sum(kinds.values()) >= 2000


def test_things_are_drawn_where_the_scene_says() -> None:
    for _, shown, _ in pictures.pictures("test", 20):
        image = shown.draw()
        assert image.shape == (shown.height, shown.width, 3)
        for thing in shown.things:
            found = (image == pictures.COLOURS[thing.colour]).all(-1)
            box = found[thing.y - thing.radius : thing.y + thing.radius + 1]
            assert box[:, thing.x - thing.radius : thing.x + thing.radius + 1].any()


def test_chance_is_what_the_commonest_answer_gets() -> None:
    answers: dict[str, Counter[str]] = {}
    for _, _, asked in pictures.pictures("train", 1500):
        for question in asked:
            answers.setdefault(question.kind, Counter())[question.answers[0]] += 1
    for kind, counts in answers.items():
        commonest = max(counts.values()) / sum(counts.values())
        assert commonest == pytest.approx(pictures.CHANCE[kind], abs=0.03), kind


def test_data_is_written_in_the_canonical_form(tmp_path: Path) -> None:
    data.write(tmp_path, "calibration", 3)
    samples = read_samples(tmp_path / "calibration.jsonl")
    drawn = list(pictures.pictures("calibration", 3))
    assert [s.prompt for s in samples] == [q.prompt for _, _, asked in drawn for q in asked]
    assert [s.answers for s in samples] == [q.answers for _, _, asked in drawn for q in asked]
    from PIL import Image

    assert np.array_equal(np.asarray(Image.open(str(samples[0].images[0]))), drawn[0][1].draw())
    before = (tmp_path / "calibration.jsonl").read_bytes()
    data.write(tmp_path, "calibration", 3)
    assert (tmp_path / "calibration.jsonl").read_bytes() == before


def test_vision_crops_are_those_of_the_preprocessing() -> None:
    """Stage 1 computes only the crops it needs, with the masks that the real path gives them, shift included."""
    checked = 0
    for number in range(12):
        shown = pictures.scene("probe", number)
        dice = Random(f"crops probe {number}")
        real = preprocess(shown.draw(), vision.budget(dice, (shown.height, shown.width)))
        for crop in vision.crops(number, "probe"):
            same = [n for n in range(len(real.images)) if np.array_equal(real.images[n], crop.patches)]
            assert same
            assert any(np.allclose(real.image_masks[n], crop.mask, atol=1e-6) for n in same)
            checked += 1
    assert checked >= 12


def test_labels_lie_where_the_things_are() -> None:
    for number in range(8):
        for crop in vision.crops(number, "probe"):
            pixels = crop.patches.reshape(24, 24, 14, 14, 3).transpose(0, 2, 1, 3, 4).reshape(336, 336, 3)
            for cell in np.flatnonzero(crop.labels[:, 3]):
                y, x = divmod(int(cell), 12)
                patch = pixels[28 * y : 28 * y + 28, 28 * x : 28 * x + 28]
                assert float(patch.std()) > 0.05  # a thing with its number, or its edge: not plain paper


def test_experts_gradient() -> None:
    torch.manual_seed(0)
    t, d, e, i, k = 7, 4, 5, 3, 2
    x, w = torch.randn(t, d, dtype=torch.double), torch.rand(t, k, dtype=torch.double)
    gate_up, down = torch.randn(e, 2 * i, d, dtype=torch.double), torch.randn(e, d, i, dtype=torch.double)
    index = torch.stack([torch.randperm(e)[:k] for _ in range(t)])
    inputs = [a.requires_grad_() for a in (x, w, gate_up, down)]

    def run(x: Tensor, w: Tensor, gate_up: Tensor, down: Tensor) -> Any:
        return decoder.Experts.apply(x, index, w, gate_up, down)

    assert torch.autograd.gradcheck(run, inputs)


@torch.no_grad()
def test_the_fast_decoder_is_transformers_decoder(nano: Any) -> None:
    torch.manual_seed(0)
    b, s = 2, 24
    embeds = torch.randn(b, s, CONFIG["d_model"])
    valid = torch.ones(b, s, dtype=torch.bool)
    mask = torch.ones(s, s, dtype=torch.bool).tril().expand(b, 1, s, s)
    found, balance, _, loads = decoder.forward(nano.get_decoder(), embeds, torch.arange(s).expand(b, s), mask, valid)
    expected = nano.get_decoder()(inputs_embeds=embeds, use_cache=False, output_router_logits=True)
    assert float((found - expected.last_hidden_state).abs().max()) < 1e-4 * float(found.abs().max())
    assert torch.allclose(loads.sum(1), torch.ones(len(loads)))
    from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

    # transformers' sums over the k choices (ours averages), and pools all blocks before it multiplies
    one = load_balancing_loss_func(expected.router_logits[:1], 64, 8)
    _, first, *_ = decoder.forward(_first_block(nano), embeds, torch.arange(s).expand(b, s), mask, valid)
    assert float(first) == pytest.approx(float(one) / 8, rel=1e-4)
    assert float(balance) >= 1 - 1e-3


def _first_block(nano: Any) -> Any:
    from types import SimpleNamespace

    full = nano.get_decoder()
    return SimpleNamespace(config=full.config, layers=full.layers[:1], rotary_emb=full.rotary_emb, norm=full.norm)


@torch.no_grad()
def test_packed_questions_see_what_they_would_see_alone(nano: Any) -> None:
    """One sequence with all questions gives each the predictions of the ordinary forward pass."""
    from importance.prompts import load_processor
    from transform.read import read_checkpoint

    tokenizer = load_processor(read_checkpoint(TARGET)).tokenizer
    vocabulary = CONFIG["vocab_size"]
    ids = language.Ids(vocabulary - 1, *(vocabulary + n for n in range(4)))
    _, shown, asked = next(iter(pictures.pictures("probe", 1)))
    image = preprocess(shown.draw(), 288)
    raw = nano.get_image_features(torch.from_numpy(image.images)[None], torch.from_numpy(image.image_masks)[None])
    kept = torch.from_numpy(image.feature_index)
    everywhere = torch.ones(len(kept), dtype=torch.bool)
    seen = features.Seen(image.tiling, raw[0].flatten(0, 1)[kept], everywhere, everywhere)
    questions = []
    for q in asked[:3]:
        prompt = tokenizer(f" User: {q.prompt} Assistant:")["input_ids"]
        questions.append(language.Asked(0, prompt, [*tokenizer(f" {q.answers[0]}")["input_ids"], vocabulary - 1]))
    row = language.sequence(seen, questions, ids, 1.0, 1.0, np.random.default_rng(0))
    batch = language.collate([row])
    assert len(batch.features) == len(kept)
    expected, index = [], torch.from_numpy(image.image_input_idx).long()
    for question in questions:
        tokens = [*language.stream(image.tiling, ids).tolist(), *question.prompt, *question.answer[:-1]]
        logits = nano(
            input_ids=torch.tensor([tokens]),
            images=torch.from_numpy(image.images)[None],
            image_masks=torch.from_numpy(image.image_masks)[None],
            image_input_idx=torch.where(index >= 0, index + 1, index)[None],
            logits_to_keep=len(question.answer),
        ).logits[0]
        expected.append(torch.nn.functional.cross_entropy(logits, torch.tensor(question.answer), reduction="sum"))
    total = float(sum(expected)) / sum(len(q.answer) for q in questions)
    _, shown_values, _ = language.losses(nano, batch)
    assert shown_values["answer"] == pytest.approx(total, rel=1e-3, abs=1e-5)


def test_the_curriculum_ends_with_whole_pictures() -> None:
    dice = Random(0)
    assert all(language.share(0, 0.8, dice) == (1.0, 1.0) for _ in range(20))
    early = [language.share(0, 0.0, dice) for _ in range(20)]
    assert all(background < 0.1 and things < 0.6 for things, background in early)


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None) -> tuple[Tensor, int]:
        torch.manual_seed(1)
        module = torch.nn.Linear(3, 1)
        job = Job(folder, "toy", {"m": module}, [(150, 0.05), (100, 0.02)])
        seen = 0
        for step in job.steps(lambda first: iter(range(first, 10_000))):
            if seen == stop:
                break
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            job.learn((module(x) - x.sum(1, keepdim=True)).pow(2).mean(), {})
            seen += 1
        job.use_average()
        return module.weight.detach().clone(), seen

    whole, steps = run(tmp_path / "whole", None)
    assert steps == 250
    run(tmp_path / "parts", 130)  # killed: step 100 is what was kept
    resumed, rest = run(tmp_path / "parts", None)
    assert rest == 150
    assert torch.equal(whole, resumed)
    log = [json.loads(line) for line in (tmp_path / "whole" / "toy.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 250
    assert math.isfinite(log[-1]["loss"])


def test_what_other_vision_weights_saw_is_not_taken(nano: Any, tmp_path: Path) -> None:
    """The vision side, trained again in the same folder, sees otherwise."""
    _, shown, _ = next(iter(pictures.pictures("probe", 1)))
    Image.fromarray(shown.draw()).save(tmp_path / "one.png")
    sample = Sample("1", (tmp_path / "one.png",), "What is this?", ("a disc",))
    backbone = copy.deepcopy(nano.model.vision_backbone)
    first, again = (features.seen(tmp_path, backbone, [sample], "probe")[0].features for _ in range(2))
    assert torch.equal(first, again)
    with torch.no_grad():
        next(backbone.parameters()).add_(0.5)
    assert not torch.equal(features.seen(tmp_path, backbone, [sample], "probe")[0].features, first)
    assert len(list(tmp_path.glob("seen-probe-*.pt"))) == 2
