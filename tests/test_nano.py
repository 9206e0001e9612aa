"""The embedded default model: rebuilt byte for byte, small enough to track, and scored for real."""

import json
import math
from pathlib import Path

import pytest

from artifacts.nano import build, pictures, weights
from importance import choose_blocks, model_digest, read_scores
from transform.checkpoint import INDEX, read_checkpoint
from transform.safetensors_header import read_header

NANO = build.TARGET


def test_it_has_the_released_topology_within_its_budget() -> None:
    checkpoint = read_checkpoint(NANO)
    settings = checkpoint.settings
    assert (settings.layers, settings.experts, set(settings.top_k)) == (16, 64, {8})
    assert settings.hidden % 32 == 0
    assert checkpoint.tensor("expert.gate").shape[0] % 32 == 0
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"BF16"}
    shards = sorted(NANO.glob("*.safetensors"))
    assert len(shards) > 1
    assert all(shard.stat().st_size <= 9_000_000 for shard in shards)
    assert sum(path.stat().st_size for path in NANO.iterdir()) <= 16_000_000


def test_building_again_gives_the_tracked_bytes(tmp_path: Path) -> None:
    build.build(tmp_path)
    assert sorted(path.name for path in NANO.iterdir()) == sorted(
        [*(p.name for p in tmp_path.iterdir()), "scores.json"]
    )
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (NANO / path.name).read_bytes(), path.name


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


def test_random_values_have_the_spread_that_was_asked_for() -> None:
    import numpy as np

    name = "model.transformer.blocks.3.attn.att_proj.weight"
    bits = next(bits for found, _, bits in weights.tensors(build.CONFIG) if found == name)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    assert abs(float(values.mean())) < 0.01
    assert float(values.std()) == pytest.approx(1 / math.sqrt(64), rel=0.02)


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


def test_the_card_says_what_it_is() -> None:
    card = (NANO / "README.md").read_text()
    assert "not trained" in card
    assert "answers mean nothing" in card


def test_scores_belong_to_these_weights_and_choose_blocks() -> None:
    checkpoint = read_checkpoint(NANO)
    scores = read_scores(NANO / "scores.json", 16, model_digest(checkpoint))
    assert sorted(scores.values) == sorted(scores.stderr) == list(range(16))
    assert all(value > 0 for value in scores.values.values())
    assert "never trained" in scores.notes["note"]
    assert scores.data_digest == pictures.digest(list(pictures.samples(scores.samples or 0)))
    kept = choose_blocks(checkpoint, blocks=12)
    dropped = set(range(16)) - set(kept)
    assert len(dropped) == 4
    assert max(scores.values[b] for b in dropped) <= min(scores.values[b] for b in kept if b not in (0, 15))


def test_scores_were_really_measured() -> None:
    """Two of the samples, measured again, lie within the committed means' own spread."""
    import torch

    from artifacts.nano import score
    from transform.load import load_model

    committed = read_scores(NANO / "scores.json", 16)
    model = load_model(NANO)
    blocks = (0, 3, 9, 14)
    with torch.inference_mode():
        found = [score.divergences(model, *score.embed(model, NANO, item), blocks) for item in pictures.samples(2)]
    for block, values in zip(blocks, zip(*found, strict=True), strict=True):
        spread = committed.stderr[block] * math.sqrt((committed.samples or 0) / len(values))
        assert abs(math.fsum(values) / len(values) - committed.values[block]) < 4 * spread


@pytest.mark.extra
def test_scores_can_be_measured_again() -> None:
    """All of them, which takes minutes; threads and instruction sets may move the last digits."""
    from artifacts.nano import score

    committed, fresh = read_scores(NANO / "scores.json", 16), score.measure(NANO)
    assert (fresh.model_digest, fresh.data_digest) == (committed.model_digest, committed.data_digest)
    assert fresh.samples == committed.samples
    for block in range(16):
        assert fresh.values[block] == pytest.approx(committed.values[block], rel=0.01)
        assert fresh.stderr[block] == pytest.approx(committed.stderr[block], rel=0.02)


def test_pictures_differ_and_repeat() -> None:
    first, second = list(pictures.samples(8)), list(pictures.samples(8))
    assert pictures.digest(first) == pictures.digest(second) != pictures.digest(first[:7])
    assert len({item.image.tobytes() for item in first}) == 8
    for item in first:
        colours = {tuple(pixel) for pixel in item.image.reshape(-1, 3)[::7].tolist()}
        assert len(colours) == 2, item.id  # background and shape
