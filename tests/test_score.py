"""`knobcast score` from samples to files, against the plain way: `evaluate` with one block masked at a time."""

import json
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from export.command.main import app
from importance import shards
from importance.choose import choose_blocks
from importance.configurations import without
from importance.evaluate import evaluate, prepare
from importance.jobs import JobsError
from importance.metrics import METRICS
from importance.prompts import load_processor
from importance.readers.read import read_samples
from importance.samples import Sample, SamplesError, samples_digest
from importance.score import Scorer, Setting
from importance.scores import read_scores
from tests.support.command import knobcast
from transform.errors import KnobcastError, KnobError, ScoresError, WriteError
from transform.load import load_model
from transform.read import read_checkpoint
from transform.runtime import BlockMaskWrapper
from transform.source import DEFAULT

FULL = (8,) * 16
CHECKPOINT = read_checkpoint(DEFAULT)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures with two questions each, one question without; answers that the model gives, but for two."""
    folder = tmp_path_factory.mktemp("score")
    (folder / "images").mkdir()
    noise = np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8)
    rows: list[dict[str, Any]] = []
    for n in range(3):
        Image.fromarray(np.roll(noise, 7 * n, 1) // (n + 1)).save(folder / "images" / f"{n}.png")
        for question in ("What colour is the ring?", "How many marks are there?"):
            rows.append({"id": f"{n}{question}", "image": f"images/{n}.png", "prompt": question, "answers": ["?"]})
    rows.append({"id": "none", "image": None, "prompt": "What colour?", "answers": ["?"]})
    file = folder / "d.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    model = load_model(DEFAULT)
    given = evaluate(model, prepare(model, load_processor(CHECKPOINT), read_samples(file), 288), max_new_tokens=4)
    for row, answer in zip(rows, given.answers, strict=True):
        row["answers"] = [answer or "nothing"]
    rows[1]["answers"] = ["surely not"]
    rows[4]["answers"] = ["something else", rows[4]["answers"][0]]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def setting(data: Path, **kwargs: Any) -> Setting:
    return Setting(CHECKPOINT, data, **{"tokens": 288, "max_new_tokens": 4, **kwargs})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def test_accuracy_drops_are_those_of_evaluate(data: Path, store: Path) -> None:
    scorer = Scorer(setting(data), store)
    scores = scorer.scores()
    model = load_model(DEFAULT)
    prepared = prepare(model, load_processor(CHECKPOINT), read_samples(data), 288)
    full = evaluate(model, prepared, max_new_tokens=4)
    assert scores.baseline == pytest.approx(full.accuracy)
    assert scores.samples == 7
    for block in (0, 1, 6, 15):
        with BlockMaskWrapper(model, [i != block for i in range(16)]):
            ablated = evaluate(model, prepared, max_new_tokens=4)
        assert scores.values[block] == pytest.approx(full.accuracy - ablated.accuracy), block
    assert scores.values[0] > 0
    assert scorer.report["block_evaluations"] == 136 * 4  # three pictures and a question without


def test_the_same_scores_on_any_executor_and_from_kept_results(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = setting(data, metric="nll")
    with ThreadPoolExecutor(1) as pool:
        first = Scorer(wanted, tmp_path, pool).scores()
    assert len(list(tmp_path.glob("*.json"))) == len(wanted.shards()) > 1

    def never(_: Any) -> Any:
        raise AssertionError("all results are kept")

    monkeypatch.setattr("importance.score.run_shard", never)
    assert Scorer(wanted, tmp_path).scores() == first
    assert all(low <= high for low, high in first.interval.values())


def test_pictures_are_digested_once_however_often_sets_are_measured(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(setting(data, metric="nll"), tmp_path)
    digested: list[Sample] = []

    def counted(samples: Sequence[Sample]) -> str:
        digested.extend(samples)
        return samples_digest(samples)

    monkeypatch.setattr("importance.score.samples_digest", counted)
    full = scorer.setting.full
    first = scorer.measure([full])
    assert np.allclose(scorer.measure([full, (0, *full[1:])])[0], first[0])
    assert len(digested) == len(scorer.setting.samples)


def test_a_failed_job_leaves_the_others_and_a_rerun_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = setting(data, metric="nll", scoring="likelihood")
    calls = []

    def failing(spec: Any) -> Any:
        calls.append(spec)
        if 6 in spec["samples"]:
            raise RuntimeError("out of luck")
        return shards.run_shard(spec)

    monkeypatch.setattr("importance.score.run_shard", failing)
    with pytest.raises(JobsError, match=f"1 of {len(wanted.shards())}"):
        Scorer(wanted, tmp_path).scores()
    calls.clear()

    def counted(spec: Any) -> Any:
        calls.append(spec)
        return shards.run_shard(spec)

    monkeypatch.setattr("importance.score.run_shard", counted)
    Scorer(wanted, tmp_path).scores()
    assert [spec["samples"] for spec in calls] == [[6]]


def test_streamed_equals_resident(data: Path, tmp_path: Path) -> None:
    for metric in ("accuracy", "kl", "block_influence"):
        kwargs = {"metric": metric, "scoring": "likelihood", "tokens_per_call": 0}
        ours = Scorer(setting(data, streamed=True, **kwargs), tmp_path).scores()
        theirs = Scorer(setting(data, **kwargs), tmp_path).scores()
        assert ours.values == theirs.values, metric


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_every_metric_scores_every_block(metric: Any, data: Path, store: Path) -> None:
    scores = Scorer(setting(data, metric=metric.name, scoring="likelihood"), store).scores()
    assert sorted(scores.values) == list(range(16))
    assert scores.higher_means == metric.higher_means
    assert scores.samples == 7
    assert len(set(scores.values.values())) > 1


def test_without_labels_the_default_is_kl_at_the_models_own_answers(data: Path, store: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    shutil.copytree(data.parent / "images", tmp_path / "images")
    for row in rows:
        row["answers"] = []
    file = tmp_path / "plain.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    wanted = setting(file)
    assert wanted.chosen.name == "kl"
    scores = Scorer(wanted, store).scores()
    assert min(scores.values.values()) > 0
    assert scores.notes["answers"] == "the full model's own"
    labelled = Scorer(setting(data, metric="kl"), store).scores()
    # five of seven answers are the model's own there too
    assert scores.values[0] == pytest.approx(labelled.values[0], rel=0.6)
    for metric in ("accuracy",):
        with pytest.raises(SamplesError, match="0 of 7"):
            Scorer(setting(file, metric=metric), store)
    with pytest.raises(SamplesError, match="0 of 7"):
        Scorer(setting(file, metric="nll", streamed=True), store)


def test_choices_are_compared_by_likelihood(data: Path, store: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    shutil.copytree(data.parent / "images", tmp_path / "images")
    for row in rows:
        row |= {"answers": ["red"], "choices": ["blue", "red", "left of the ring"]}
    file = tmp_path / "choices.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    losses = Scorer(setting(file, scoring="choices"), store).measure([FULL])
    likelihoods = []
    for choice in rows[0]["choices"]:
        for row in rows:
            row["answers"] = [choice]
        other = tmp_path / f"{choice.split()[0]}.jsonl"
        other.write_text("\n".join(map(json.dumps, rows)))
        likelihoods.append(Scorer(setting(other, metric="nll"), store).measure([FULL])[0])
    best = np.argmin(likelihoods, 0)
    np.testing.assert_array_equal(losses[0], (best != 1).astype(float))


def test_data_or_model_that_changed_meanwhile_is_refused(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data.parent, copy)
    scorer = Scorer(setting(copy / data.name, metric="nll"), tmp_path / "jobs")
    text = (copy / data.name).read_text()
    (copy / data.name).write_text(text.replace("What colour?", "Which colour?"))
    with pytest.raises(KnobcastError, match="stay as they are"):
        scorer.scores()


def test_knobs_at_which_to_score(data: Path, store: Path) -> None:
    four = Scorer(setting(data, k=4, metric="nll"), store)
    np.testing.assert_array_equal(
        four.measure([(4,) * 16]), Scorer(setting(data, metric="nll"), store).measure([(4,) * 16])
    )
    with pytest.raises(KnobError, match="from 1 to the experts, 64"):
        Scorer(setting(data, k=65), store)


def test_scores_are_what_export_reads(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    svg = tmp_path / "scores.svg"
    args = ("score", "--data", data, "--tokens", 288, "--metric", "nll", "--out", out, "--plot", svg)
    code, shown, _ = knobcast(*args, "--validate", data)
    assert code == 0, shown
    assert "Spearman 1.000" in shown and "consistent" in shown
    assert svg.read_text().startswith("<?xml")
    scores = read_scores(out, 16)
    kept = choose_blocks(CHECKPOINT, blocks=12, scores=out)
    middle = sorted(range(1, 15), key=lambda block: scores.importance[block])
    assert sorted(set(range(16)) - set(kept)) == sorted(middle[:4])
    assert not list(tmp_path.glob("*.jobs")), "done: nothing to go on with"
    code, _, error = knobcast(*args)
    assert code == 1 and "--force" in error
    other = json.loads(out.read_text()) | {"model_digest": "0" * 64}
    out.write_text(json.dumps(other))
    with pytest.raises(ScoresError, match="Score this model"):
        choose_blocks(CHECKPOINT, blocks=12, scores=out)


@pytest.mark.parametrize("search", ["one_shot", "window", "greedy", "beam", "exact"])
def test_searches_write_sets_that_export_reads(search: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "sets.json"
    protect = "0,15," + ",".join(str(block) for block in range(5, 15))
    args = ("--data", data, "--limit", 3, "--tokens", 288, "--metric", "kl", "--strategy", search)
    code, shown, error = knobcast("search", *args, "--max-drop", 2, "--protect", protect, "--out", out, "--json")
    assert code == 0, error
    found = json.loads(shown)
    assert found["strategy"] == search
    dropped = found["sets"]["14"]
    assert set(dropped) <= {1, 2, 3, 4}
    assert set(range(16)) - set(choose_blocks(CHECKPOINT, blocks=14, scores=out)) == set(dropped)
    assert found["block_evaluations"] <= found["naive_block_evaluations"]


def test_metrics_of_single_blocks_add_up_over_a_set(data: Path, store: Path, tmp_path: Path) -> None:
    scorer = Scorer(setting(data, metric="block_influence"), store)
    scores = scorer.scores().values
    losses = scorer.measure([FULL, without(FULL, [3, 7])]).mean(1)
    assert losses.tolist() == pytest.approx([0.0, scores[3] + scores[7]])
    out = tmp_path / "sets.json"
    code, shown, error = knobcast(
        "search", "--data", data, "--tokens", 288, "--metric", "block_influence", "--strategy", "exact", "--out", out
    )
    assert code == 0, error
    assert "configurations" in shown, "the table for people"
    least = sorted(range(1, 15), key=lambda block: scores[block])[:4]
    assert json.loads(out.read_text())["sets"]["12"] == sorted(least)
    assert json.loads(out.read_text())["samples"] == 7


def test_gradients_are_taken_at_the_k_that_was_asked_for(data: Path, store: Path) -> None:
    eight, two = (Scorer(setting(data, metric="gradient", k=k), store).scores().values for k in (8, 2))
    assert eight != two


def test_answers_that_are_all_wrong_score_nothing(data: Path, store: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) | {"answers": ["zyx"]} for line in data.read_text().splitlines()]
    shutil.copytree(data.parent / "images", tmp_path / "images")
    (tmp_path / "wrong.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SamplesError, match="0 of 7 answers"):
        Scorer(setting(tmp_path / "wrong.jsonl"), store).scores()


def test_a_sample_that_does_not_fit_is_named(data: Path, store: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[-1]["prompt"] = "very " * 5000
    shutil.copytree(data.parent / "images", tmp_path / "images")
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(KnobcastError, match="sample 'none': begin token, image, prompt and answer must fit"):
        Scorer(setting(tmp_path / "long.jsonl", metric="nll"), store).scores()


def test_only_some_labels_are_refused_where_labels_count(data: Path, store: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[2]["answers"] = []
    shutil.copytree(data.parent / "images", tmp_path / "images")
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SamplesError, match="1 of 7"):
        Scorer(setting(tmp_path / "some.jsonl"), store)
    assert Scorer(setting(tmp_path / "some.jsonl", metric="kl"), store).scores().notes["answers"].startswith("the full")


def test_exact_search_is_brute_force(data: Path, store: Path) -> None:
    """Every set of at most 2 of 5 blocks, each measured alone."""
    from itertools import combinations

    from importance.search.exact import search

    scorer = Scorer(setting(data, metric="kl", limit=2), store)
    free = (1, 2, 3, 9, 14)
    found = search(scorer.measure, FULL, 2, protected=frozenset(range(16)) - set(free))
    for size in (1, 2):
        alone = {s: float(scorer.measure([without(FULL, s)]).mean()) for s in combinations(free, size)}
        best = min(alone, key=lambda s: alone[s])
        assert found.best[size - 1].dropped == best
        assert found.best[size - 1].loss == pytest.approx(alone[best], abs=1e-6)


def test_experts_are_shared_out(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "widths.json"
    code, shown, error = knobcast(
        "share", "--data", data, "--limit", 3, "--tokens", 288, "--metric", "kl", "--mean-k", 5, "--ks", "2,4",
        "--out", out, "--json",
    )  # fmt: skip
    assert code == 0, error
    found = json.loads(shown)
    ks = [int(k) for k in found["k"].split(",")]
    assert len(ks) == 16 and sum(ks) <= 80 and set(ks) <= {2, 4, 8}
    ours, same = found["allocation"]
    assert ours["predicted"] <= same["predicted"]
    code, _, error = knobcast("plan", "--k", found["k"])
    assert code == 0, error


def test_what_it_costs_is_shown_first(data: Path, tmp_path: Path) -> None:
    code, shown, _ = knobcast("score", "--data", data, "--dry-run", "--json", "--out", tmp_path / "x.json")
    assert code == 0
    told = json.loads(shown)
    assert told["block_evaluations"] == 136
    assert told["timed_samples"] == 2  # the second picture's
    assert told["seconds"] == pytest.approx(told["timed_seconds"] * 4, abs=0.1)  # three pictures and a text
    code, shown, _ = knobcast(
        "search", "--data", data, "--dry-run", "--strategy", "exact", "--max-drop", 14, "--out", tmp_path / "x.json"
    )
    assert "32,768" in shown and "147,456" in shown
    assert " on this machine, one job after another" in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("score", "--metric", "bi"), "block_influence"),
        (("score", "--task", "bleu"), "metric must be one of"),
        (("score", "--scoring", "guess"), "scoring must be one of"),
        (("score", "--stream", "--scoring", "generate"), "need the model in memory"),
        (("score", "--stream", "--metric", "gradient"), "whole model in memory"),
        (("search", "--strategy", "magic"), "a search is one of"),
        (("share", "--mean-k", "4", "--metric", "angular"), "accuracy, nll or kl"),
        (("share", "--mean-k", "9"), "from 1 to 8"),
        (("score", "--metric", "kl", "--scoring", "likelihood"), "--scoring says how accuracy"),
        (("score", "--validate-annotations", "a.json"), "--validate-annotations only make sense with --validate"),
        (("search", "--strategy", "exact", "--beam-width", "2"), "--beam-width is for --strategy beam"),
        (("score", "--plot", "x.pdf"), ".svg or .png"),
        (("score", "--validate", "missing.jsonl"), "cannot be read"),
        (("search", "--strategy", "exact", "--max-drop", "15"), "max_drop must be from 0 to 14"),
        (("share", "--mean-k", "4", "--ks", "a"), "whole numbers"),
        (("score", "--vision-weight", "2"), "from 0 to 1"),
        (("score", "--executor", "slurm"), "local, processes, ray"),
        (("score", "--scoring", "choices"), "choices"),
    ],
)
def test_refusals(args: tuple[str, ...], message: str, data: Path, tmp_path: Path) -> None:
    code, _, error = knobcast(*args, "--data", data, "--tokens", 288, "--out", tmp_path / "out.json")
    assert code == 1
    assert message in " ".join(error.split())
    assert not list(tmp_path.iterdir()), "nothing may be left"


def test_weights_of_a_merge_are_numbers(tmp_path: Path) -> None:
    code, _, error = knobcast("merge", "a.json", "--weights", "x", "--how", "weighted", "--out", tmp_path / "out.json")
    assert (code, "--weights must be numbers" in error) == (1, True)


@pytest.mark.parametrize("verb", [["score"], ["search", "--strategy", "exact"], ["share", "--mean-k", 4], ["evaluate"]])
def test_whoever_gives_no_samples_is_told_how_to_make_them(verb: list[Any]) -> None:
    code, _, error = knobcast(*verb)
    assert code == 2
    assert '"prompt": "What is it?", "answers": ["a dog"]' in error
    page, _, anchor = re.findall(r"docs/[\w./#-]*\w", error)[0].partition("#")
    assert f"## {anchor.capitalize().replace('-', ' ')}\n" in (Path(__file__).parents[1] / page).read_text()


def test_an_existing_file_is_refused_before_anything_is_computed(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    out.write_text("{}")
    with pytest.raises(WriteError, match="--force"):
        CliRunner().invoke(app, ["score", "--data", str(data), "--out", str(out)], catch_exceptions=False)


def test_the_scores_that_came_with_a_model_are_not_the_first_to_go(data: Path, tmp_path: Path) -> None:
    for words in (["score", "--data", data], ["merge", *[DEFAULT / "scores.json"] * 2]):
        code, _, error = knobcast(*words)
        assert (code, error.index("--out FILE") < error.index("--force")) == (1, True)
    (tmp_path / "bad.jsonl").write_text("{")
    code, _, error = knobcast("score", "--data", tmp_path / "bad.jsonl")
    assert (code, "bad.jsonl" in error, "--force" in error) == (1, True, False), "mistakes in the data come first"


def test_ctrl_c_keeps_what_is_done(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = setting(data, metric="nll")
    done: list[Any] = []

    def interrupted(spec: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(spec)
        return shards.run_shard(spec)

    monkeypatch.setattr("importance.score.run_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Scorer(wanted, tmp_path).scores()
    assert len(list(tmp_path.glob("*.json"))) == 2


@pytest.mark.extra
@pytest.mark.parametrize("name", ["processes", "ray"])
def test_other_processes_give_the_same_scores(name: str, data: Path, tmp_path: Path) -> None:
    """A real pool of processes, a real Ray on this machine."""
    from importance.executors import open_executor

    if name == "ray":
        pytest.importorskip("ray", reason="the extra [ray] isn't installed")
    wanted = setting(data, metric="nll", limit=4)
    with open_executor(name, 2) as executor:
        ours = Scorer(wanted, tmp_path / "there", executor).scores()
    theirs = Scorer(wanted, tmp_path / "here").scores()
    for block, value in theirs.values.items():
        assert ours.values[block] == pytest.approx(value, abs=1e-6)  # another number of threads rounds otherwise
