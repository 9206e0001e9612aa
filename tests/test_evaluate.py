"""`evaluate` gives the answers that `generate` gives one sample at a time, and counts them rightly."""

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from export.command.show import show_evaluation
from export.variant import export_variant
from importance import batch
from importance.batch import EvaluationError, answer_batch, prefill, rows_that_fit
from importance.evaluate import evaluate, evaluate_plan, prepare
from importance.prompts import load_processor
from importance.readers.read import read_samples
from importance.samples import Sample, SamplesError
from tests.support.command import knobcast
from transform.errors import CheckpointError, KnobcastError
from transform.knobs import Knobs
from transform.load import load_model
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.runtime import knobs_at_run_time
from transform.source import DEFAULT

NEW = 5
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
KEEP = (0, 1, 2, 5, 6, 8, 9, 10, 11, 13, 14, 15)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, the second of more than one tile; questions of different lengths, not sorted by picture."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (300, 520, 3), np.uint8)
    Image.fromarray(noise[:60, :80]).save(folder / "images" / "small.png")
    Image.fromarray(noise).save(folder / "images" / "wide.png")
    rows = [
        ("a", "images/small.png", "What colour is the circle in the middle of the picture?", "colour"),
        ("b", "images/wide.png", "How many?", "count"),
        ("c", None, "Say something.", None),
        ("d", "images/small.png", "How many?", "count"),
        ("e", ["images/wide.png"], "Where is the cross?", "position"),
        ("f", [], "And now say something else, if you can.", None),
        ("g", "images/small.png", "Why", "colour"),
    ]
    lines = [{"id": i, "image": image, "prompt": p, "answers": ["7"], "kind": kind} for i, image, p, kind in rows]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "d.jsonl"


@pytest.fixture(scope="module")
def samples(data: Path) -> list[Sample]:
    return read_samples(data)


@pytest.fixture(scope="module")
def nano() -> tuple[Any, Any]:
    """The embedded model and its processor."""
    return load_model(DEFAULT), load_processor(read_checkpoint(DEFAULT))


@pytest.fixture(scope="module")
def speaker(olmoe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only model whose vocabulary is that of the embedded model's tokenizer."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(1)
    config = OlmoeConfig.from_pretrained(olmoe, vocab_size=768, eos_token_id=743, num_hidden_layers=3)
    directory = tmp_path_factory.mktemp("models") / "speaker"
    OlmoeForCausalLM(config).save_pretrained(directory)
    for name in TOKENIZER:
        shutil.copy(DEFAULT / name, directory)
    return directory


def generated(model: Any, processor: Any, samples: Sequence[Sample], tokens: int | None = None) -> list[str]:
    """What transformers' own generate says to one sample at a time."""
    tokenizer = getattr(processor, "tokenizer", processor)
    answers = []
    for sample in samples:
        if tokenizer is processor:
            given = dict(processor(sample.prompt, return_tensors="pt", return_token_type_ids=False))
        else:
            given = processor(text=sample.prompt, images=sample.images[0] if sample.images else None, tokens=tokens)
        ids = model.generate(**given, max_new_tokens=NEW, do_sample=False)[0, given["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    return answers


SETTINGS = [
    Knobs(),
    Knobs(k=2),
    Knobs(keep=KEEP),
    Knobs(tokens=288),
    Knobs(k=(1, 2, *[4] * 10), keep=KEEP, tokens=288),
]


@pytest.mark.parametrize("knobs", SETTINGS, ids=str)
def test_answers_are_those_of_generate(nano: tuple[Any, Any], samples: list[Sample], knobs: Knobs) -> None:
    model, processor = nano
    tokens = knobs.tokens if isinstance(knobs.tokens, int) else None
    plan = make_plan(read_checkpoint(DEFAULT), knobs)
    with knobs_at_run_time(model, plan.keep_blocks, plan.target.settings.top_k):
        found = evaluate(model, prepare(model, processor, samples, tokens), max_new_tokens=NEW)
        assert list(found.answers) == generated(model, processor, samples, tokens)


def test_knobs_change_the_answers_and_leave_no_trace(nano: tuple[Any, Any], samples: list[Sample]) -> None:
    """Else the comparison above could compare anything."""
    model, processor = nano
    prepared = prepare(model, processor, samples)
    full = evaluate(model, prepared, max_new_tokens=NEW)
    plan = make_plan(read_checkpoint(DEFAULT), Knobs(k=1, keep=(0, 8, 15)))
    with knobs_at_run_time(model, plan.keep_blocks, plan.target.settings.top_k):
        assert evaluate(model, prepared, max_new_tokens=NEW).answers != full.answers
    assert evaluate(model, prepared, max_new_tokens=NEW) == full


def test_a_variant_answers_as_the_dynamic_knobs(samples: list[Sample], tmp_path: Path) -> None:
    plan = make_plan(read_checkpoint(DEFAULT), Knobs(k=4, keep=KEEP, tokens=288))
    export_variant(plan, tmp_path / "v", onnx=False, verify=False)
    static = evaluate_plan(make_plan(read_checkpoint(tmp_path / "v"), Knobs()), samples, max_new_tokens=NEW)
    assert static == evaluate_plan(plan, samples, max_new_tokens=NEW)


def test_pictures_are_seen_once(nano: tuple[Any, Any], samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = nano
    seen: list[int] = []
    prefilled: list[int] = []
    features, decoder = model.get_image_features, model.get_decoder().forward

    def look(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        seen.append(images.shape[1])
        return features(images, masks)

    monkeypatch.setattr(model, "get_image_features", look)
    held, streamed = prepare(model, processor, samples), prepare(model, processor, samples, hold=False)
    assert sorted(seen) == [2, 3]
    first = evaluate(model, held, max_new_tokens=1)
    assert evaluate(model, held, max_new_tokens=1) == first
    assert sorted(seen) == [2, 3]
    lengths = [prefix.shape[1] for _, prefix in held.prefixes()]

    def watch(*args: Any, **kwargs: Any) -> Any:
        if kwargs["inputs_embeds"].shape[1] in lengths:
            prefilled.append(kwargs["inputs_embeds"].shape[1])
        return decoder(*args, **kwargs)

    monkeypatch.setattr(model.get_decoder(), "forward", watch)
    assert evaluate(model, streamed, max_new_tokens=1) == first
    assert sorted(seen) == [2, 2, 3, 3]
    assert sorted(prefilled) == sorted(lengths)
    assert len(lengths) == 3  # two pictures, and none


def test_a_budget_changes_what_is_seen(nano: tuple[Any, Any], samples: list[Sample]) -> None:
    model, processor = nano
    wide = [s for s in samples if s.images and Path(str(s.images[0])).name == "wide.png"]
    stock, least = (prepare(model, processor, wide, tokens) for tokens in (None, 288))
    assert [prefix.shape[1] for _, prefix in stock.prefixes()] == [1 + 160 + 12 * 21]
    assert [prefix.shape[1] for _, prefix in least.prefixes()] == [1 + 160 + 12 * 13]


def test_pictures_in_memory(nano: tuple[Any, Any], samples: list[Sample]) -> None:
    """As arrays and as pillow's, grouped where they are the same object."""
    model, processor = nano
    files = [s for s in samples if s.images]
    opened: dict[str, Any] = {}
    for sample in files:
        with Image.open(Path(str(sample.images[0]))) as picture:
            opened.setdefault(str(sample.images[0]), picture.copy() if sample.id == "a" else np.asarray(picture))
    prepared = prepare(model, processor, [replace(s, images=(opened[str(s.images[0])],)) for s in files])
    assert len(prepared.groups) == 2
    theirs = evaluate(model, prepare(model, processor, files), max_new_tokens=NEW)
    assert evaluate(model, prepared, max_new_tokens=NEW) == theirs


def test_accuracy_is_counted(nano: tuple[Any, Any], samples: list[Sample]) -> None:
    model, processor = nano
    texts = [replace(s, images=()) for s in samples]
    said = evaluate(model, prepare(model, processor, texts), max_new_tokens=NEW).answers
    right = {"a", "c", "e", "g"}
    keyed = [
        replace(s, answers=("not this", answer.upper() or "?") if s.id in right else (f"{answer} and more",))
        for s, answer in zip(texts, said, strict=True)
    ]
    done: list[int] = []
    prepared = prepare(model, processor, keyed)
    found = evaluate(model, prepared, max_new_tokens=NEW, progress=done.append)
    assert found.answers == said
    assert found.scores == (1, 0, 1, 0, 1, 0, 1)
    assert sum(done) == 7
    assert found.as_dict() == {
        "accuracy": pytest.approx(4 / 7),
        "stderr": pytest.approx((4 / 7 * 3 / 7 / 7) ** 0.5),
        "samples": 7,
        "by_kind": {  # "c" and "f" have no kind
            "colour": {"accuracy": 1.0, "stderr": 0.0, "samples": 2},
            "count": {"accuracy": 0.0, "stderr": 0.0, "samples": 2},
            "position": {"accuracy": 1.0, "stderr": 0.0, "samples": 1},
        },
    }
    assert list(found.by_kind) == ["colour", "count", "position"]
    longest = evaluate(model, prepared, max_new_tokens=NEW, metric=lambda answer, _: len(answer) / 100)
    assert longest.accuracy == pytest.approx(sum(map(len, said)) / 700)


@pytest.mark.parametrize("prefix", [0, 1, 9])
def test_rows_of_a_batch_end_on_their_own(olmoe: Path, prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Different lengths, end tokens met at different times, with and without a prefix, in one batch and in several."""
    model = load_model(olmoe)
    dice = np.random.default_rng(3)
    begin = dice.integers(3, 128, prefix).tolist()
    questions = [dice.integers(3, 128, n).tolist() for n in (4, 11, 1, 7, 2)]
    free = [_generate(model, begin + ids, 8, [127_000]) for ids in questions]
    ends = [free[0][0], free[1][3], free[2][7]]
    theirs = [_generate(model, begin + ids, 8, ends) for ids in questions]
    assert len({len(ids) for ids in theirs}) > 2, "the rows must not all end at once"
    with torch.inference_mode():
        cache = prefill(model, model.get_input_embeddings()(torch.tensor([begin], dtype=torch.long)))
        assert cache.get_seq_length() == prefix
        assert answer_batch(model, cache, questions, frozenset(ends), 8) == theirs
        assert answer_batch(model, cache, questions[3:], frozenset(ends), 8) == theirs[3:]  # the prefix is as it was
    assert rows_that_fit(model, 512) == batch.MAX_ROWS
    monkeypatch.setattr(batch, "CACHE_BYTES", 3 * 2 * 6 * 64 * 4 * 512)
    assert [rows_that_fit(model, n) for n in (512, 513, 10**9)] == [3, 2, 1]


def _generate(model: Any, ids: list[int], new: int, ends: list[int]) -> list[int]:
    made = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=new,
        do_sample=False, eos_token_id=ends,
    )[0, len(ids) :].tolist()  # fmt: skip
    return made[:-1] if made[-1] in ends else made


@pytest.mark.parametrize("knobs", [Knobs(), Knobs(k=1, keep=(0, 2))], ids=str)
def test_models_without_eyes(speaker: Path, knobs: Knobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_ROWS", 2)
    prompts = ("The circle is", "Why", "One two three four", "7")
    samples = [Sample(str(i), (), prompt, ("x",)) for i, prompt in enumerate(prompts)]
    plan = make_plan(read_checkpoint(speaker), knobs)
    found = evaluate_plan(plan, samples, max_new_tokens=NEW)
    model = load_model(speaker)
    with knobs_at_run_time(model, plan.keep_blocks, plan.target.settings.top_k):
        assert list(found.answers) == generated(model, load_processor(plan.source), samples)
    with pytest.raises(SamplesError, match="'p': this model sees no images"):
        evaluate_plan(plan, [*samples, Sample("p", (Path("x.png"),), "?", ("x",))])
    with pytest.raises(SamplesError, match="vision budget"):
        prepare(model, load_processor(plan.source), samples, 288)


def test_samples_that_do_not_fit(nano: tuple[Any, Any], samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = nano
    length = len(processor(text=samples[3].prompt, images=samples[3].images[0])["input_ids"][0])
    monkeypatch.setattr(model.config, "max_sequence_length", length + NEW)
    prepared = prepare(model, processor, [samples[3]])
    assert evaluate(model, prepared, max_new_tokens=NEW).samples == 1
    with pytest.raises(SamplesError, match=rf"'d': .* {length + NEW} positions: 317 \+ .* = {length + NEW + 1}\."):
        evaluate(model, prepared, max_new_tokens=NEW + 1)


def test_samples_the_model_can_not_take(nano: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = nano
    (tmp_path / "x.png").write_bytes(b"no picture")
    good = Sample("a", (), "?", ("x",))
    for wrong, words in (
        (replace(good, id="b", images=(tmp_path / "x.png",)), "'b': The image must be a picture"),
        (replace(good, id="b", images=(tmp_path, tmp_path)), "'b': a prompt takes at most one image, got 2"),
        (replace(good, id="b", prompt="what is <im_patch>?"), "'b': a prompt must not contain"),
    ):
        with pytest.raises(SamplesError, match=words):
            prepare(model, processor, [good, wrong])
    with pytest.raises(SamplesError, match="got 0"):
        prepare(model, processor, [])


def test_models_that_can_not_answer(speaker: Path, molmo: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"prompts need tokenizer\.json"):
        load_processor(read_checkpoint(molmo))
    broken = Path(shutil.copytree(speaker, tmp_path / "broken"))
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json must be intact"):
        load_processor(read_checkpoint(broken))
    model = load_model(speaker)
    prepared = prepare(model, load_processor(read_checkpoint(speaker)), [Sample("a", (), "?", ("x",))])
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(EvaluationError, match="finite logits"):
        evaluate(model, prepared)
    model.lm_head.weight.data = model.lm_head.weight.data[:, :32]
    with pytest.raises(EvaluationError, match="PyTorch can run"):
        evaluate(model, prepared)


def test_the_command(data: Path) -> None:
    knobs = ("--k", "2", "--drop-blocks", "3,4", "--tokens", "288", "--limit", "3", "--max-new-tokens", "2")
    done = knobcast("evaluate", DEFAULT, "--data", data, *knobs, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert list(found) == ["accuracy", "stderr", "samples", "by_kind"]
    assert found["samples"] == 3
    assert set(found["by_kind"]) == {"colour", "count"}
    assert "3 of 3 samples" in done.err
    assert "95 % interval" in knobcast("evaluate", "--data", data, "--limit", "1", "--max-new-tokens", "1").out


def test_the_table() -> None:
    out = io.StringIO()
    share = {"accuracy": 0.5, "stderr": 0.05, "samples": 100}
    show_evaluation({**share, "by_kind": {"[count]": {**share, "accuracy": 0.0, "samples": 10}}}, Console(file=out))
    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["kind", "accuracy", "95", "%", "interval", "samples"],
        ["[count]", "0.0%", "0.0%", "to", "27.8%", "10"],
        ["all", "50.0%", "40.4%", "to", "59.6%", "100"],
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "absent.jsonl"], ["absent.jsonl", "cannot be read"]),
        (["--limit", "0"], ["at least 1"]),
        (["--limit", "few"], ["--limit", "whole number"]),
        (["--k", "65"], ["from 1 to 64", "65"]),
        (["--k", "4,4"], ["2 values", "16 blocks"]),
        (["--keep-blocks", "0,1", "--drop-blocks", "2"], ["--keep-blocks", "--drop-blocks"]),
        (["--keep-blocks", "16"], ["16"]),
        (["--tokens", "300"], ["288 and 432", "300"]),
        (["--tokens", "14400"], ["4096", "14400"]),
        (["/nowhere/model"], ["no such directory"]),
    ],
    ids=str,
)
def test_bad_input(data: Path, arguments: list[str], words: list[str]) -> None:
    done = knobcast("evaluate", "--data", data, *arguments)
    assert (done.code, done.out) == (1, "")
    assert done.said.count("error:") == 1
    for word in words:
        assert word in done.said


def test_what_is_refused_is_one_family() -> None:
    assert issubclass(SamplesError, KnobcastError)
    assert issubclass(EvaluationError, KnobcastError)
