"""The embedded default model: small enough to track, in the released layout, trained, scored and measured."""

import json
from pathlib import Path

import pytest

from artifacts.nano import build, card, data, pictures
from artifacts.nano.curves import best, worst
from artifacts.nano.measure import BLOCKS
from importance import choose_blocks, model_digest, read_scores
from importance.evaluate import evaluate, prepare
from importance.prompts import load_processor
from importance.readers.read import read_samples
from transform.load import load_model
from transform.read import read_checkpoint
from transform.runtime import BlockMaskWrapper, moe_top_k
from transform.safetensors_header import read_header
from transform.weight_files import INDEX

NANO = build.TARGET
MEASURED = json.loads((Path(__file__).parents[1] / "docs" / "nano.json").read_text())


def rows(curve: str) -> list[dict]:
    return [row for row in MEASURED["settings"] if row["curve"] == curve]


def at(curve: str, blocks: int) -> dict:
    (row,) = [row for row in rows(curve) if row["blocks"] == blocks]
    return row


def test_it_has_the_released_topology_within_its_budget() -> None:
    checkpoint = read_checkpoint(NANO)
    settings = checkpoint.settings
    assert (settings.layers, settings.experts, set(settings.top_k)) == (16, 64, {8})
    assert settings.hidden % 32 == 0
    assert checkpoint.tensor("expert.gate").shape[0] % 32 == 0
    assert build.CONFIG["vision_backbone"]["image_emb_dim"] % 32 == 0
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"BF16"}
    shards = sorted(NANO.glob("*.safetensors"))
    assert len(shards) > 1
    assert all(shard.stat().st_size <= 9_000_000 for shard in shards)
    assert sum(path.stat().st_size for path in NANO.iterdir() if path.is_file()) <= 16_000_000


def test_what_is_not_trained_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    build.side_files(tmp_path)
    made = sorted(path.name for path in tmp_path.iterdir())
    weights = [path.name for path in NANO.glob("*.safetensors")]
    tracked = sorted(path.name for path in NANO.iterdir() if path.is_file())
    assert tracked == sorted([*made, *weights, INDEX, "scores.json", "README.md"])
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (NANO / path.name).read_bytes(), path.name


def test_writing_the_loaded_model_again_gives_the_tracked_weights(tmp_path: Path) -> None:
    build.build(tmp_path, load_model(NANO))
    for path in [*NANO.glob("*.safetensors"), NANO / INDEX]:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_safetensors_reads_what_was_written() -> None:
    import torch
    from safetensors.torch import load_file

    index = json.loads((NANO / INDEX).read_text())
    for file in sorted(set(index["weight_map"].values())):
        loaded = load_file(NANO / file)
        assert {entry.name for entry in read_header(NANO / file)} == set(loaded)
        for name, tensor in loaded.items():
            assert index["weight_map"][name] == file
            assert tensor.dtype == torch.bfloat16
            assert torch.isfinite(tensor.float()).all()


def test_the_tokenizer_loads_and_gives_every_text_back() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(NANO)
    vocabulary = build.CONFIG["vocab_size"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (None, vocabulary - 1, 1)
    images = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>"]
    assert tokenizer.convert_tokens_to_ids(images) == [vocabulary + n for n in range(5)]
    assert vocabulary + len(images) <= build.CONFIG["embedding_size"]
    question = " User: What colour is the red circle? Assistant:"
    for text in (question, "Größe 漢字 🙂\n\t~", bytes(range(1, 128)).decode()):
        ids = tokenizer(text)["input_ids"]
        assert max(ids) < vocabulary - 1
        assert tokenizer.decode(ids) == text
    assert len(tokenizer(question)["input_ids"]) < 15


def test_generation_stops_where_the_tokenizer_ends() -> None:
    generation = json.loads((NANO / "generation_config.json").read_text())
    assert generation == {"eos_token_id": build.CONFIG["vocab_size"] - 1, "pad_token_id": 1}


def test_scores_belong_to_these_weights_and_choose_blocks() -> None:
    checkpoint = read_checkpoint(NANO)
    scores = read_scores(NANO / "scores.json", 16, model_digest(checkpoint))
    assert sorted(scores.values) == sorted(scores.stderr) == list(range(16))
    kept = choose_blocks(checkpoint, blocks=12)
    dropped = set(range(16)) - set(kept)
    assert len(dropped) == 4
    assert max(scores.values[b] for b in dropped) <= min(scores.values[b] for b in kept if b not in (0, 15))


def near(found: float, published: float, samples: int) -> bool:
    """Within two standard errors: the pictures are always the same, chance was only in which they are."""
    return abs(found - published) <= 2 * (published * (1 - published) / samples) ** 0.5


def test_a_part_of_the_test_set_gives_the_published_curves(tmp_path: Path) -> None:
    """The first pictures, drawn again, in all kinds: at full knobs, and where a knob must hurt or must not."""
    data.write(tmp_path, "test", 30)
    samples = read_samples(tmp_path / "test.jsonl")
    model, processor = load_model(NANO), load_processor(read_checkpoint(NANO))
    prepared = prepare(model, processor, samples)
    full = evaluate(model, prepared, max_new_tokens=4)
    with moe_top_k(model, 1):
        single = evaluate(model, prepared, max_new_tokens=4)
    dropped = {}
    for choice, blocks in (("least", best(12)), ("most", worst(12))):
        with BlockMaskWrapper(model, [i not in blocks for i in range(BLOCKS)]):
            dropped[choice] = evaluate(model, prepared, max_new_tokens=4)
    detail = [sample for sample in samples if sample.kind == "detail"]
    blurred = evaluate(model, prepare(model, processor, detail, 288), max_new_tokens=4)

    published = [(full, rows("full")[0]), (single, rows("k")[-1])]
    published += [(found, at(f"blocks, {choice} important dropped", 12)) for choice, found in dropped.items()]
    for found, row in published:
        assert near(found.accuracy, row["accuracy"], found.samples), row["name"]
    for kind, share in full.by_kind.items():
        assert near(share.accuracy, rows("full")[0]["by_kind"][kind]["accuracy"], share.samples), kind
        assert share.accuracy - 2 * share.stderr > pictures.CHANCE[kind], kind
    assert near(blurred.accuracy, rows("tokens")[0]["by_kind"]["detail"]["accuracy"], blurred.samples)
    assert full.accuracy - single.accuracy >= 0.05
    assert dropped["least"].accuracy - dropped["most"].accuracy >= 0.10
    assert full.by_kind["detail"].accuracy - blurred.accuracy >= 0.10


def test_card_and_table_say_what_was_measured() -> None:
    text, table = (NANO / "README.md").read_text(), (Path(build.__file__).parents[2] / "docs" / "nano.md").read_text()
    assert table == card.curves(MEASURED)
    full = rows("full")[0]
    assert f"{full['accuracy']:.3f}" in text
    for kind in pictures.KINDS:
        assert f"| {pictures.CHANCE[kind]:.2f} | {full['by_kind'][kind]['accuracy']:.3f} |" in text


@pytest.mark.extra
def test_the_whole_test_set_gives_the_published_accuracy(tmp_path: Path) -> None:
    data.write(tmp_path, "test", data.PICTURES["test"])
    model = load_model(NANO)
    samples = read_samples(tmp_path / "test.jsonl")
    found = evaluate(
        model, prepare(model, load_processor(read_checkpoint(NANO)), samples, hold=False), max_new_tokens=4
    )
    assert found.samples == MEASURED["samples"]
    assert found.accuracy == pytest.approx(rows("full")[0]["accuracy"], abs=0.005)  # ties may fall otherwise elsewhere
