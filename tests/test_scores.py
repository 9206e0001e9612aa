"""Scores files of every accepted form, and every way in which one can be wrong; presets."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from importance.choose import choose_blocks, find_scores
from importance.presets import BlockSets, load_preset, preset_names, resolve
from importance.scores import (
    Scores,
    model_digest,
    parse_scores,
    presets_for,
    read_object,
    read_scores,
    write_scores,
)
from importance.sets import write_sets
from transform.errors import KnobError, ScoresError, WriteError
from transform.read import read_checkpoint

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
        ('{"1": 1e999}', "has 1e999"),
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
        (CANONICAL | {"blocks": [{"index": 0, "score": 1, "stderr": -0.1}]}, "0 or more, block 0 has -0.1"),
        (CANONICAL | {"blocks": [{"index": 0, "score": 1, "low": 0.5}]}, "high of block 0 has None"),
        (CANONICAL | {"blocks": [{"index": 0, "score": 1, "high": 0.5}]}, "low of block 0 has None"),
        (CANONICAL | {"blocks": [{"index": 0, "score": 1, "low": 2, "high": 1}]}, "block 0 has 2.0 to 1.0"),
        ('{"schema": 1, "blocks": [{"index": 0, "score": 1, "low": -1e999, "high": 1}]}', "has -1e999"),
        ({"sets": None}, "sets of blocks"),
        ({"sets": {"x": []}}, "sets of blocks"),
        ({"sets": 5}, "sets of blocks"),
        (CANONICAL | {"higher_means": "sideways"}, "sideways"),
        (CANONICAL | {"samples": "many"}, "samples must be a int or null"),
        (CANONICAL | {"samples": True}, "samples must be a int or null"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(ScoresError, match=words) as caught:
        read_scores(write(tmp_path, content), 4)
    assert str(caught.value).startswith("scores.json: ")


@pytest.mark.parametrize(
    "content",
    [
        {"scores": {"0": 0.5}},
        {"block_influence": {"0": 0.5}},
        {"0": 0.5, "model": "a model"},
        {"layer_0": 0.5},
        {"model.layers.0": 0.5},
        {"0": 0.5, "1.5": 0.5},
        {"": 0.5},
        CANONICAL | {"blocks": [{"index": "layer_3", "score": 1}]},
    ],
    ids=str,
)
def test_scores_under_other_keys_are_told_the_accepted_forms(tmp_path: Path, content: object) -> None:
    with pytest.raises(ScoresError, match=r"scores belong to block indices from 0 to 3, got .*") as caught:
        read_scores(write(tmp_path, content), 4)
    for form in ('{"schema": 1', '{"3": 0.0092, ...}', "merged_scores"):
        assert form in str(caught.value)


@pytest.mark.parametrize("content", [{"1": 0.5}, CANONICAL], ids=["plain", "canonical"])
def test_a_byte_order_mark_is_no_matter(tmp_path: Path, content: dict[str, object]) -> None:
    plain = read_scores(write(tmp_path, content), 4)
    (tmp_path / "scores.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    assert read_scores(tmp_path / "scores.json", 4) == plain
    sets = {"schema": 1, "layers": 2, "sets": {"1": [0]}}
    (tmp_path / "sets.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(sets).encode())
    assert read_object(tmp_path / "sets.json") == sets


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


def test_presets_are_offered_and_taken_where_they_belong(olmoe: Path) -> None:
    assert set(presets_for("molmo", 16)) == set(preset_names())
    assert presets_for("molmo", 4) == presets_for("olmoe", 16) == ()
    with pytest.raises(ScoresError, match="preset:vqa-nested must be of the model's own family: it is of 'molmo'"):
        load_preset("vqa-nested", 16, "olmoe")
    with pytest.raises(ScoresError, match=r"Give --scores FILE \(`knobcast score` measures one\), or name"):
        choose_blocks(read_checkpoint(olmoe), blocks=3)
    with pytest.raises(ScoresError, match=r"scores preset:NAME .*exp3-nested"):
        choose_blocks(16, blocks=3)


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


def test_intervals_survive_a_round_trip_and_may_miss_the_score(tmp_path: Path) -> None:
    scores = Scores({0: 0.5, 1: 0.25}, interval={1: (0.3, 0.4)}, stderr={1: 0.0})
    write_scores(scores, tmp_path / "scores.json")
    assert read_scores(tmp_path / "scores.json", 2) == replace(scores, source="scores.json")
    entries = json.loads((tmp_path / "scores.json").read_text())["blocks"]
    assert entries == [
        {"index": 0, "score": 0.5},
        {"index": 1, "score": 0.25, "stderr": 0.0, "low": 0.3, "high": 0.4},
    ]


def test_scores_are_never_overwritten_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_scores(Scores({0: 1.0}), path)
    first = path.read_bytes()
    write_scores(Scores({0: 1.0}), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == first
    with pytest.raises(WriteError, match=r"scores.json exists; pass --force"):
        write_scores(Scores({0: 2.0}), path)
    assert path.read_bytes() == first
    write_scores(Scores({0: 2.0}), path, force=True)
    assert read_scores(path, 1).values == {0: 2.0}
    with pytest.raises(WriteError, match="does not exist"):
        write_scores(Scores({0: 2.0}), tmp_path / "none" / "scores.json")
    assert {file.name for file in tmp_path.iterdir()} == {"scores.json", "again.json"}


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    monkeypatch.setattr("importance.atomic.os.path.lexists", lambda _: False)
    path.write_text("theirs")
    with pytest.raises(WriteError, match="exists"):
        write_scores(Scores({0: 1.0}), path)
    assert path.read_text() == "theirs"
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.parametrize(
    "wrong",
    [
        Scores({}),
        Scores({0: float("nan")}),
        Scores({0: 1.0}, stderr={0: -1.0}),
        Scores({0: 1.0}, interval={0: (2.0, 1.0)}),
        Scores({0: 1.0}, notes={"x": object()}),
        Scores({0: 1.0}, notes={"x": "y" * 1_000_000}),
        Scores({0: 1.0}, higher_means="sideways"),
        Scores({-1: 1.0, 0: 1.0}),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, wrong: Scores) -> None:
    with pytest.raises(ScoresError):
        write_scores(wrong, tmp_path / "scores.json")
    assert list(tmp_path.iterdir()) == []


def test_notes_replace_no_field() -> None:
    assert (
        Scores({0: 1.0}, samples=5, notes={"samples": 6, "mine": 1}).to_json()
        == Scores({0: 1.0}, samples=5, notes={"mine": 1}).to_json()
    )


SETS = {14: (13, 4), 12: (2, 4, 10, 13)}


def test_sets_in_a_file_choose_blocks_as_presets_do(tmp_path: Path) -> None:
    path = tmp_path / "sets.json"
    written = write_sets(path, 16, SETS, scores=Scores({4: 0.1}, metric="drop", model_digest="aa11"), noise="little")
    assert choose_blocks(16, blocks=12, scores=path) == resolve("exp3-nested", 12)
    assert choose_blocks(16, blocks=14, scores=str(path)) == resolve("exp3-nested", 14)
    found = find_scores(None, path, 16, lambda: "aa11")
    assert found == written
    assert isinstance(found, BlockSets)
    assert found.scores is not None
    assert (found.scores.values, found.scores.metric, found.noise) == ({4: 0.1}, "drop", "little")
    with pytest.raises(ScoresError, match=r"sets.json: .*measured on aa11.*this model is bb22"):
        find_scores(None, path, 16, lambda: "bb22")
    with pytest.raises(KnobError, match="sets for 12, 14 blocks, got 13"):
        choose_blocks(16, blocks=13, scores=path)
    with pytest.raises(ScoresError, match="models of 16 blocks, this one has 4"):
        choose_blocks(4, blocks=3, scores=path)
    with pytest.raises(WriteError, match="exists"):
        write_sets(path, 16, SETS)
    assert write_sets(path, 16, SETS, notes={"seed": 1, "sets": "no"}, force=True).notes == {"seed": 1}


def test_sets_beside_a_model_are_found_and_tied_to_it(molmo: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(molmo / name)
    model = read_checkpoint(tmp_path)
    write_sets(tmp_path / "scores.json", 4, {3: [2], 2: [1, 2]}, model_digest=model_digest(model))
    assert choose_blocks(model, blocks=2) == (0, 3)
    write_sets(tmp_path / "scores.json", 4, {3: [2]}, model_digest="00", force=True)
    with pytest.raises(ScoresError, match="measured on 00"):
        choose_blocks(model, blocks=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema must be 1, got 2"),
        ({"schema": True}, "schema must be 1, got True"),
        ({"layers": None}, "models of None blocks"),
        ({"layers": 4.0}, "models of 4.0 blocks"),
        ({"sets": {}}, "sets must hold"),
        ({"sets": [[1]]}, "sets must hold"),
        ({"sets": {"x": [1]}}, "got 'x'"),
        ({"sets": {"03": [1]}}, "got '03'"),
        ({"sets": {"0": [0, 1, 2, 3]}}, "got '0'"),
        ({"sets": {"5": []}}, "got '5'"),
        ({"sets": {"3": [4]}}, "0 to 3"),
        ({"sets": {"3": [-1]}}, "0 to 3"),
        ({"sets": {"3": [True]}}, "0 to 3"),
        ({"sets": {"3": "1"}}, "0 to 3"),
        ({"sets": {"3": [1, 2]}}, "1 different ones go, the set has 2: 1, 2"),
        ({"sets": {"2": [1, 1]}}, "2 different ones go, the set has 1: 1, 1"),
        ({"scores": [{"index": 9, "score": 1}]}, "got 9"),
        ({"scores": {"1": 1}}, "must be a list"),
        ({"model_digest": 5}, "model_digest must be a str"),
        ({"noise": ["much"]}, "noise must be a str"),
    ],
)
def test_wrong_sets_are_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = write(tmp_path, {"schema": 1, "layers": 4, "sets": {"3": [2]}} | change)
    with pytest.raises(ScoresError, match=words) as caught:
        find_scores(None, path, 4)
    assert str(caught.value).startswith("scores.json")


def test_wrong_sets_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match="2 different ones go"):
        write_sets(tmp_path / "sets.json", 4, {2: [1]})
    assert list(tmp_path.iterdir()) == []


def test_scores_are_one_value_however_they_are_written() -> None:
    assert parse_scores({"1": 2}, "a", 4).values == parse_scores({"train_scores": {"1": 2.0}}, "a", 4).values


def test_importing_importance_needs_no_torch() -> None:
    code = (
        "import importance, sys; from importance import Scores, read_scores, choose_blocks, BlockSets, merge_scores, "
        "select_top_k_blocks, select_by_threshold, model_digest; importance.resolve("
        "'vqa-measured', 12); assert not {'torch', 'numpy', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
