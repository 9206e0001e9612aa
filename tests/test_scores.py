"""Scores files of every accepted form, and every way in which one can be wrong; presets."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from importance.presets import BlockSets, load_preset, preset_names, resolve
from importance.scores import Scores, model_digest, parse_scores, read_scores
from transform.checkpoint import read_checkpoint
from transform.errors import KnobError, ScoresError

CANONICAL: dict[str, Any] = {
    "schema": 1,
    "metric": "accuracy drop",
    "unit": "accuracy",
    "higher_means": "more important",
    "baseline": 0.8,
    "samples": 100,
    "model_digest": "aa11",
    "data_digest": None,
    "note": "kept",
    "blocks": [{"index": 0, "score": 0.5, "stderr": 0.01}, {"index": 2, "score": -0.1}],
}


def write(directory: Path, content: object) -> Path:
    path = directory / "scores.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_canonical_form_is_read_whole_and_survives_a_round_trip(tmp_path: Path) -> None:
    scores = read_scores(write(tmp_path, CANONICAL), 4)
    assert scores.values == {0: 0.5, 2: -0.1}
    assert scores.stderr == {0: 0.01}
    assert (scores.metric, scores.unit, scores.baseline, scores.samples) == ("accuracy drop", "accuracy", 0.8, 100)
    assert scores.notes == {"note": "kept"}
    assert read_scores(write(tmp_path, scores.to_json()), 4) == scores


@pytest.mark.parametrize("key", [None, "merged_scores", "train_scores", "importance_scores"])
def test_foreign_forms_may_be_partial_and_nested(tmp_path: Path, key: str | None) -> None:
    plain: dict[str, float] = {"3": 0.0092, "1": 1, "10": -2e-3}
    content = plain if key is None else {key: plain, "datasets": ["a", "b"]}
    assert read_scores(write(tmp_path, content), 16).values == {3: 0.0092, 1: 1.0, 10: -0.002}


def test_direction_is_respected(tmp_path: Path) -> None:
    scores = read_scores(write(tmp_path, CANONICAL | {"higher_means": "less important"}), 4)
    assert scores.importance == {0: -0.5, 2: 0.1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"1": NaN}', "NaN"),
        ('{"1": Infinity}', "Infinity"),
        ('{"1": 1e999}', "block 1 has inf"),
        ('{"1": ' + "9" * 400 + "}", "block 1 has 999"),
        ('{"1": "0.5"}', "block 1 has '0.5'"),
        ('{"1": true}', "block 1 has True"),
        ('{"1": null}', "block 1 has None"),
        ('{"1": [0.5]}', "finite numbers"),
        ('{"4": 0.5}', "0 to 3 .*4 blocks.* got 4"),
        ('{"-1": 0.5}', "got '-1'"),
        ('{"1.0": 0.5}', "got '1.0'"),
        ('{"01": 0.5}', "got '01'"),
        ('{"one": 0.5}', "got 'one'"),
        ('{"1": 0.5, "1": 0.6}', "'1' occurs twice"),
        ("{}", "at least one block"),
        ('{"merged_scores": {}}', "at least one block"),
        ('{"merged_scores": [0.5]}', "must hold an object"),
        ("[0.5, 0.6]", "JSON object, got a list"),
        ("not json", "must be JSON"),
        ("", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        (CANONICAL | {"schema": 2}, "schema must be 1, got 2"),
        ({"blocks": []}, "schema must be 1"),
        (CANONICAL | {"blocks": []}, "at least one block"),
        (CANONICAL | {"blocks": {"0": 1}}, "must be a list"),
        (CANONICAL | {"blocks": [{"index": 0}]}, "index and score"),
        (CANONICAL | {"blocks": [{"index": 0, "score": 1}] * 2}, "block 0 has two"),
        (CANONICAL | {"blocks": [{"index": 1.0, "score": 1}]}, "got 1.0"),
        (CANONICAL | {"blocks": [{"index": True, "score": 1}]}, "got True"),
        (CANONICAL | {"blocks": [{"index": 9, "score": 1}]}, "0 to 3"),
        (CANONICAL | {"higher_means": "sideways"}, "sideways"),
        (CANONICAL | {"samples": "many"}, "samples must be a int or null"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(ScoresError, match=words) as caught:
        read_scores(write(tmp_path, content), 4)
    assert str(caught.value).startswith("scores.json: ")


def test_a_missing_file_and_an_unknown_preset_name_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match="cannot be read"):
        read_scores(tmp_path / "none.json", 4)
    with pytest.raises(ScoresError, match=r"exp3-nested, .*vqa-measured"):
        read_scores("preset:vqa", 16)
    with pytest.raises(ScoresError, match="one of the"):
        read_scores("preset:../../pyproject", 16)


def test_scores_of_another_model_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, CANONICAL)
    assert read_scores(path, 4, "aa11").samples == 100
    with pytest.raises(ScoresError, match=r"measured on aa11.*this model is bb22"):
        read_scores(path, 4, "bb22")
    assert read_scores(write(tmp_path, CANONICAL | {"model_digest": None}), 4, "bb22").samples == 100


def test_model_digest_follows_the_weights_and_not_the_config(molmo: Path, tmp_path: Path) -> None:
    known = model_digest(read_checkpoint(molmo))
    copy = tmp_path / "model"
    copy.mkdir()
    data = bytearray((molmo / "model.safetensors").read_bytes())
    config = json.loads((molmo / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"moe_top_k": 1}))
    (copy / "model.safetensors").write_bytes(data)
    assert model_digest(read_checkpoint(copy)) == known
    head = read_checkpoint(molmo).tensor("head")
    data[head.start] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert model_digest(read_checkpoint(copy)) != known


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_says_where_it_comes_from_and_how_sure_it_is(name: str) -> None:
    preset = load_preset(name, 16)
    notes = preset.notes if isinstance(preset, Scores) else {"provenance": preset.provenance, "noise": preset.noise}
    assert len(notes["provenance"]) > 50
    assert len(notes["noise"]) > 50
    counts = range(3, 17) if isinstance(preset, Scores) else preset.drop
    for blocks in counts:
        kept = resolve(name, blocks)
        assert len(kept) == blocks
        assert {0, 15} <= set(kept)
    with pytest.raises(ScoresError, match="models of 16 blocks, this one has 4"):
        load_preset(name, 4)


def test_published_sets_and_orders() -> None:
    everything = set(range(16))
    assert everything - set(resolve("exp3-nested", 12)) == {2, 4, 10, 13}
    assert everything - set(resolve("exp3-nested", 15)) == {4}
    assert everything - set(resolve("drop-2-4-13-14", 12)) == {2, 4, 13, 14}
    assert everything - set(resolve("vqa-measured", 10)) == {3, 4, 7, 12, 6, 14}
    for blocks in (12, 13, 14, 15):  # the sets follow the measured order
        assert resolve("vqa-nested", blocks) == resolve("vqa-measured", blocks)
        assert resolve("exp3-recommended", blocks) == resolve("exp3-nested", blocks)
    assert resolve("exp3-nested", 16) == tuple(range(16))


def test_measured_scores_are_partial_and_hand_set_ones_say_so() -> None:
    measured, hand_set = load_preset("vqa-measured", 16), load_preset("exp3-recommended", 16)
    assert isinstance(measured, Scores)
    assert isinstance(hand_set, Scores)
    assert sorted(measured.values) == list(range(1, 15))
    assert set(measured.stderr.values()) == {0.003}
    assert "HAND-SET" in hand_set.notes["title"]
    assert (hand_set.metric, hand_set.stderr) == ("hand-set rank", {})


def test_sets_have_no_scores_and_only_their_own_numbers() -> None:
    with pytest.raises(KnobError, match="12, 13, 14, 15 blocks, got 11"):
        resolve("exp3-nested", 11)
    with pytest.raises(ScoresError, match=r"sets of blocks.*12, 13, 14, 15"):
        read_scores("preset:exp3-nested", 16)
    assert isinstance(load_preset("preset:exp3-nested", 16), BlockSets)


def test_scores_are_one_value_however_they_are_written() -> None:
    assert parse_scores({"1": 2}, "a", 4).values == parse_scores({"train_scores": {"1": 2.0}}, "a", 4).values


def test_importing_importance_needs_no_torch() -> None:
    code = (
        "import importance, sys; [getattr(importance, n) for n in importance.__all__]; importance.resolve("
        "'vqa-measured', 12); assert not {'torch', 'numpy', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
