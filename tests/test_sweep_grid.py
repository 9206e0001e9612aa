"""What a sweep is asked to measure: grids, presets, workloads; what is refused before any work."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from export.sweep.grid import preset_grids, read_grid
from export.sweep.settings import MOST_SETTINGS, Planned, full_setting, settings_of, with_full
from export.sweep.workloads import parse_workloads, usual_workloads
from importance.choose import find_scores
from tests.support.command import knobcast
from tests.support.families import write_scores
from transform.errors import KnobcastError, KnobError
from transform.molmoe.tiling import BudgetError
from transform.read import read_checkpoint
from transform.source import DEFAULT

QA = {"qa": {"image": "640x480", "prompt": 32, "new": 8}}


def planned(source: Path, grid: str, scores: str | None = None) -> tuple[Planned, ...]:
    checkpoint = read_checkpoint(source)
    ranking = None if scores is None else find_scores(None, scores, checkpoint.settings.layers)
    return settings_of(read_grid(grid), checkpoint, ranking)


def test_every_combination_once_in_the_grids_order(molmo: Path, tmp_path: Path) -> None:
    found = planned(molmo, "k=2,1 blocks=3,4 tokens=288,low form=cpu,int4", write_scores(tmp_path))
    names = [each.name for each in found]
    assert len(names) == 16
    assert names[:5] == ["k2-b3-t288", "k2-b3-t288-int4", "k2-b3-tlow", "k2-b3-tlow-int4", "k2-b4-t288"]
    assert {each.plan.keep_blocks for each in found} == {(0, 2, 3), (0, 1, 2, 3)}
    assert found[0].config == (2, 0, 2, 2)


@pytest.mark.parametrize(
    ("grid", "count"),
    [
        ("k=2,2 tokens=288,288", 1),
        ("k=4,2", 2),
        ("k=2,2x4", 1),  # one k for all, and the same written per block
        ("dtype=source,float32", 1),  # the source is float32
        ("form=cuda dtype=source,float16", 1),  # the form is float16
        ("dtype=source,float16", 2),
    ],
)
def test_two_names_of_one_setting_are_one(molmo: Path, grid: str, count: int) -> None:
    assert len(planned(molmo, grid)) == count


def test_the_full_setting_is_there_once(molmo: Path) -> None:
    full = full_setting(read_checkpoint(molmo))
    assert [each.name for each in with_full(planned(molmo, "k=2"), full)] == ["k4-b4", "k2-b4"]
    assert [each.name for each in with_full(planned(molmo, "k=2,4"), full)] == ["k4-b4", "k2-b4"]


def test_a_settings_command_makes_it(tmp_path: Path) -> None:
    scores = str(DEFAULT / "scores.json")
    found = planned(DEFAULT, "k=4,8 blocks=12,16 tokens=432 form=cpu,int4 dtype=source", scores)
    for each in (found[0], found[1], found[-1]):
        words = shlex.split(each.command(None))
        done = knobcast(*words[1:], "--dry-run", "--json", "--out", tmp_path / "v")
        facts = json.loads(done.out)
        assert (words[0], done.code) == ("knobcast", 0)
        assert facts["layout_digest"] == each.plan.target.layout_digest
        assert facts["vision"]["tokens"] == 432
        assert facts["knobs"]["form"] == each.plan.form.name


@pytest.mark.parametrize("name", preset_grids())
def test_presets_say_where_they_come_from_and_fit_the_default_model(name: str) -> None:
    grid = read_grid(name)
    assert "nothing of it was measured by knobcast" in (Path("export/sweep/grids") / f"{name}.toml").read_text()
    found = settings_of(grid, read_checkpoint(DEFAULT), find_scores(None, DEFAULT / "scores.json", 16))
    assert len(found) == {"core27": 27, "crops27": 27, "static75": 75, "vision-targets": 9, "latency-k": 6}[name]


def test_a_file_has_axes_and_workloads(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[grid]\nk = [1, "4x2.2x2"]\nform = ["cpu"]\n[workload.qa]\nimage = "64x48"\nprompt = 3\nnew = 2\n')
    grid = read_grid(str(file))
    assert grid.axes == {"k": ["1", "4x2.2x2"], "form": ["cpu"]}
    assert grid.text == "k=1,4x2.2x2 form=cpu"
    assert grid.workload is not None
    workload = parse_workloads(grid.workload, True, "mine.toml")["qa"]
    assert (workload.image, workload.prompt, workload.new) == ((64, 48), 3, 2)


@pytest.mark.parametrize(
    ("grid", "error", "words"),
    [
        ("", KnobError, "at least one axis"),
        ("depth=3", KnobError, "'depth=3'"),
        ("k=1 k=2", KnobError, "k occurs twice"),
        ("nonsense", KnobError, "core27, .* got 'nonsense'"),
        ("nowhere.toml", KnobError, "no such file"),
        ("k=9", KnobError, "from 1 to 8"),
        ("blocks=5", KnobError, "got 5"),
        ("tokens=300", BudgetError, "300"),
        ("tokens=many", KnobError, "many"),
        ("form=gpu", KnobError, "form must be one of"),
        ("form=cpu,int4 dtype=float16,float64", KnobError, "dtype must be"),
        ("form=cuda dtype=bfloat16", KnobError, "cuda form is float16"),
        ("k=1,2,3,4,5,6,7,8 tokens=" + ",".join(str(144 * n) for n in range(2, 80)), KnobError, str(MOST_SETTINGS)),
    ],
)
def test_grids_that_can_not_be(molmo: Path, grid: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        planned(molmo, grid)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid = 3", r"\[grid\] must name"),
        ("[grid]\nk = 3", "must be a list"),
        ("[grid]\nk = []", "must be a list"),
        ("[grid]\nk = [1.5]", "must be a list"),
        ("[grid]\nwidth = [1]", "width"),
        ("[grid]\nk = [1]\n[wrkload.x]\nnew = 1", "wrkload"),
        ("[grid\n", "must be a TOML file"),
        ("[grid]\nk = [1]\nk = [2]", "must be a TOML file"),
    ],
)
def test_files_that_can_not_be(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "g.toml").write_text(text)
    with pytest.raises(KnobError, match=words):
        read_grid(str(tmp_path / "g.toml"))


def test_tokens_are_for_models_that_see(olmoe: Path) -> None:
    with pytest.raises(KnobError, match="see none"):
        planned(olmoe, "tokens=288")
    assert usual_workloads(False)["qa"].image is None
    with pytest.raises(KnobError, match="has an image"):
        parse_workloads(QA, False, "w.toml")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({}, "at least one"),
        (None, "at least one"),
        (3, "tables with a name each, got 3"),
        ([QA], "tables with a name each"),
        ({"Q A": QA["qa"]}, "'Q A'"),
        ({"qa": 3}, "has the keys"),
        ({"qa": {"prompt": 3}}, "has the keys"),
        ({"qa": {**QA["qa"], "size": 3}}, "has the keys"),
        ({"qa": {**QA["qa"], "new": 1}}, "new must be a whole number from 2, got 1"),
        ({"qa": {**QA["qa"], "prompt": True}}, "got True"),
        ({"qa": {**QA["qa"], "image": "640"}}, "WIDTHxHEIGHT"),
        ({"qa": {**QA["qa"], "image": "99999x99999"}}, "at most"),
        ({"qa": {**QA["qa"], "image": 3}}, "WIDTHxHEIGHT"),
    ],
)
def test_workloads_that_can_not_be(raw: Any, words: str) -> None:
    with pytest.raises(KnobcastError, match=words):
        parse_workloads(raw, True, "w.toml")
