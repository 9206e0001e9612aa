"""`knobcast sweep` from a grid to its table: answers are those of `evaluate`, work is the least, nothing is done
twice, what fails fails alone."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import importance.evaluate
import importance.score
from export.family.family import MemberError, export_family, member_name
from export.run.session import RunError
from export.sweep.answers import read_answers
from export.sweep.clock import Ask
from export.sweep.folder import held
from export.sweep.latency import LatencyError, time_decoder
from export.sweep.table import Table, read_table
from export.variant import export_variant
from importance.atomic import _host
from importance.evaluate import Group, Prepared, evaluate_plan
from importance.readers.read import read_samples
from importance.shards import run_shard
from tests.support.command import Done, knobcast
from tests.support.families import write_scores
from tests.support.paths import ROOT
from tests.support.speakers import drawn_samples, speaking_molmo
from transform.errors import WriteError
from transform.knobs import Knobs
from transform.plan import Plan, make_plan
from transform.read import read_checkpoint

GRID = "k=1,4 blocks=3,4 tokens=288,432"
SMALL = "k=2,2x1.1x2 blocks=3 tokens=288,432"  # the first block is shared
NEW = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking_molmo(tmp_path_factory.mktemp("models") / "speaker")


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_scores(tmp_path_factory.mktemp("scores"))


@pytest.fixture(scope="module")
def data(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions whose accepted answer is what the model says to some of them."""
    folder = tmp_path_factory.mktemp("data")
    plan = make_plan(read_checkpoint(model), Knobs())
    said = evaluate_plan(plan, read_samples(drawn_samples(folder)), max_new_tokens=NEW).answers
    return drawn_samples(folder, said[:2])


def swept(out: Path, model: Path, scores: str, data: Path | None, *words: object, grid: str = GRID) -> Done:
    asked = [] if data is None else ["--data", data, "--max-new-tokens", NEW]
    return knobcast(
        "sweep", model, "--grid", grid, "--scores", scores, *asked, "--runs", 2, "--threads", 1, "--no-verify", "--out",
        out, *words,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(model: Path, scores: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished sweep, and what --json said."""
    out = tmp_path_factory.mktemp("sweeps") / "sweep"
    done = swept(out, model, scores, data, "--json", grid=f"{SMALL} form=cpu,int4")
    assert done.code == 0, done.err
    return out, json.loads(done.out)


def jobs(out: Path) -> dict[str, tuple[int, int]]:
    """Kept results: a file that is written again is another one."""
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in (out / "jobs").glob("*.json")}


def test_answers_are_those_of_evaluate_on_the_exported_variant(
    made: tuple[Path, dict[str, Any]], data: Path, model: Path, tmp_path: Path
) -> None:
    table, samples = read_table(made[0]), read_samples(data)
    for name in ("k4-b4", "k2x1.1x2-b3-t288", "k2-b3-t432", "k2-b3-t288-int4", "k2x1.1x2-b3-t432-int4"):
        point = table.point(name)
        knobs = Knobs(point.top_k, point.keep_blocks, point.tokens, form=point.form)
        plan = make_plan(read_checkpoint(model), knobs)
        export_variant(plan, tmp_path / name, verify=False)
        theirs = evaluate_plan(make_plan(read_checkpoint(tmp_path / name), Knobs()), samples, max_new_tokens=NEW)
        ours = read_answers(made[0], name, len(samples))
        assert ours.answers == theirs.answers, name
        assert ours.scores == theirs.scores
        assert point.quality is not None
        assert point.quality.total.accuracy == theirs.accuracy
        assert {task: share.accuracy for task, share in point.quality.by_task.items()} == {
            kind: share.accuracy for kind, share in theirs.by_kind.items()
        }


def test_answers_tell_settings_apart(made: tuple[Path, dict[str, Any]]) -> None:
    """Else the test above would hold for a sweep that measures one setting for all."""
    table = read_table(made[0])
    assert len({read_answers(made[0], point.name, 7).answers for point in table.points}) > len(table.points) // 2
    assert 0 < table.point(table.full).quality.total.accuracy < 1  # type: ignore[union-attr]


def least(configs: Sequence[Sequence[int]]) -> int:
    """The nodes of the trie in which a block runs: distinct beginnings of configurations that end in a kept block."""
    return len({tuple(config[: n + 1]) for config in configs for n, k in enumerate(config) if k})


def test_blocks_run_no_oftener_than_the_trie_must(made: tuple[Path, dict[str, Any]]) -> None:
    table = read_table(made[0])
    groups: dict[tuple[object, str], list[list[int]]] = {}
    for point in table.points:
        k = dict(zip(point.keep_blocks, point.top_k, strict=True))
        groups.setdefault((point.tokens, point.form), []).append([k.get(block, 0) for block in range(4)])
    chunks = 4  # three pictures and a question without
    assert made[1]["engine"]["block_evaluations"] == chunks * sum(map(least, groups.values()))
    assert len(groups) == 5


def test_a_picture_goes_through_the_tower_once_per_budget(
    model: Path, scores: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    embed = Prepared._embed

    def counted(self: Prepared, group: Group) -> Any:
        seen.append((self.prompts.tokens, group.picture))  # type: ignore[attr-defined]
        return embed(self, group)

    monkeypatch.setattr(importance.evaluate.Prepared, "_embed", counted)
    assert swept(tmp_path / "s", model, scores, data, "--no-latency").code == 0
    assert len(seen) == len(set(seen)) == 3 * 4  # budgets: two and the model's own; pictures: three and none


def test_latencies_are_sums_of_their_parts(made: tuple[Path, dict[str, Any]]) -> None:
    table = read_table(made[0])
    assert table.machine is not None
    for point in table.points:
        found, work = point.latency["qa"], table.workloads["qa"]
        assert found.vision_ms is not None
        assert found.total_ms == pytest.approx(
            found.vision_ms + found.prefill_ms + (work.new - 1) * found.decode_ms, abs=0.01
        )
        assert found.spread_ms[0] <= found.spread_ms[1]
        assert point.errors == {}
        # of its own budget: the vision part is shared by all settings of one and the same weights
        alike = [p for p in table.points if (p.tokens, p.form) == (point.tokens, point.form)]
        assert {p.latency["qa"].vision_ms for p in alike} == {found.vision_ms}
    peaks = [table.point(f"k2-b3{t}").latency["qa"].peak_bytes or 0 for t in ("-t288", "-t432")]
    assert 0 < peaks[0] <= peaks[1]


def test_a_model_without_eyes(olmoe: Path, tmp_path: Path) -> None:
    done = knobcast(
        "sweep", olmoe, "--grid", "k=2", "--runs", 1, "--threads", 1, "--no-verify", "--out", tmp_path / "s"
    )
    assert done.code == 0, done.err
    table = read_table(tmp_path / "s")
    assert [point.name for point in table.points] == ["k4-b6", "k2-b6"]
    assert all(point.latency["qa"].vision_ms is None for point in table.points)
    assert all(point.latency["qa"].total_ms > point.latency["qa"].prefill_ms > 0 for point in table.points)


def test_a_second_run_does_nothing_again(
    made: tuple[Path, dict[str, Any]], model: Path, scores: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"  # questions to other weights name the folder that these lie in
    shutil.copytree(made[0], out)
    before = jobs(out)
    bare = swept(out, model, scores, None, grid=SMALL)
    assert "this run has no --data: the accuracies leave" in bare.said
    assert "--no-latency" not in bare.said
    again = swept(out, model, scores, data, grid=SMALL)
    assert again.code == 0, again.err
    assert jobs(out) == before
    assert [point.quality is not None for point in read_table(out).points] == [True] * 5
    names = [file.name for file in (made[0] / "answers").iterdir()]
    kept = {name: (made[0] / "answers" / name).read_text() for name in names}
    assert {name: (out / "answers" / name).read_text() for name in kept} == kept


def test_a_decoders_process_is_asked_one_thing(made: tuple[Path, dict[str, Any]]) -> None:
    """Else what it keeps of another workload would count as memory of this one."""
    specs = [json.loads(file.read_text())["spec"] for file in (made[0] / "jobs").glob("*.json")]
    requests = [spec["request"] for spec in specs if spec["kind"] == "latency"]
    asked = [(r["directory"], r["graph"], tuple(ask["name"] for ask in r["asks"])) for r in requests if r["graph"]]
    decoders = [("text-k4-b4.onnx", ("stock",)), *((f"text-{k}-b3.onnx", (288, 432)) for k in ("k2", "k2x1.1x2"))]
    wanted = {("family-cpu-source", graph, (f"{t}/qa",)) for graph, budgets in decoders for t in budgets}
    assert wanted < set(asked)
    assert {names for _, graph, names in asked if graph == "text-k2-b3.onnx"} == {("288/qa",), ("432/qa",)}


def test_a_killed_sweep_goes_on(model: Path, scores: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    words = ["sweep", model, "--grid", GRID, "--scores", scores, "--data", data, "--max-new-tokens", NEW]
    words += ["--runs", 2, "--threads", 1, "--no-verify", "--out", out]
    command = [sys.executable, "-m", "export.command.main", *map(str, words)]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(jobs(out)) < 5 and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = jobs(out)
    assert 5 <= len(done) < 21, "killed in the middle"
    assert isinstance(read_table(out), Table), "whole at any time"
    calls: list[Any] = []

    def counted(spec: dict[str, object]) -> Any:
        calls.append(spec)
        return run_shard(spec)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importance.score, "run_shard", counted)
        assert swept(out, model, scores, data, "--no-latency").code == 0
    after = jobs(out)
    assert {name: after[name] for name in done} == done, "what was finished is as it was"
    assert len(calls) == len(after) - len(done)


def test_a_sweep_killed_at_its_first_file_goes_on_and_clears_up(
    model: Path, scores: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("export.sweep.run.keep_pictures", killed)
        assert swept(tmp_path / "s", model, scores, data, "--no-latency", grid="k=1 blocks=3").code == 9
    assert (tmp_path / "s" / "samples.json").is_file()
    dead = [tmp_path / "s" / name for name in ("answers", "pictures")]
    for folder in dead:
        folder.mkdir()
        (folder / f".x.json.{_host()}-999999999-0a.tmp").write_text("half of it")
    assert swept(tmp_path / "s", model, scores, data, "--no-latency", grid="k=1 blocks=3").code == 0
    assert not [file.name for folder in dead for file in folder.iterdir() if file.name.startswith(".")]


def test_a_failing_setting_fails_alone(
    model: Path, scores: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(spec: Any) -> Any:
        if [1, 0, 1, 1] in [list(config) for config in spec["configs"]]:
            raise RuntimeError("out of luck")
        return run_shard(spec)

    monkeypatch.setattr(importance.score, "run_shard", failing)
    assert swept(tmp_path / "s", model, scores, data, "--no-latency").code == 0
    table = read_table(tmp_path / "s")
    failed = {point.name: point.errors for point in table.points if point.errors}
    assert failed.keys() == {"k1-b3-t288", "k1-b3-t432"}
    assert all("out of luck" in errors["quality"] for errors in failed.values())
    assert all(point.quality for point in table.points if point.name not in failed)


def test_a_decoder_that_can_not_be_timed_is_named_and_the_others_are(
    model: Path, scores: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(directory: Path, graph: str, ask: Ask, *rest: Any) -> Any:
        if graph == "text-k1-b3.onnx":
            (directory / graph).write_bytes(b"no graph")
        if (graph, ask.name) == ("text-k4-b3.onnx", "288/long"):
            raise LatencyError("out of memory")
        return time_decoder(directory, graph, ask, *rest)

    monkeypatch.setattr("export.sweep.run.time_decoder", broken)
    (tmp_path / "w.toml").write_text("[workload.short]\nprompt = 2\nnew = 2\n[workload.long]\nprompt = 9\nnew = 2\n")
    words = ("--workloads", tmp_path / "w.toml")
    assert swept(tmp_path / "s", model, scores, None, *words, grid="k=1,4 blocks=3 tokens=288").code == 0
    table = read_table(tmp_path / "s")
    failed = {p.name: (p.errors["latency"], set(p.latency)) for p in table.points if "latency" in p.errors}
    assert failed.keys() == {"k1-b3-t288", "k4-b3-t288"}
    assert "text-k1-b3.onnx" in failed["k1-b3-t288"][0]
    assert " at " not in failed["k1-b3-t288"][0]
    assert failed["k4-b3-t288"] == ("at long: out of memory", {"short"})
    assert table.data is None
    assert all(p.latency.keys() == {"short", "long"} for p in table.points if not p.errors)


def test_a_decoder_that_can_not_be_proven_is_left_out_alone(
    model: Path, scores: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strict(plan: Plan, members: Sequence[Plan], out: Path, **rest: Any) -> Any:
        if any(member_name(member.target) == "k1-b3" for member in members):
            raise MemberError("k1-b3", "differs")
        return export_family(plan, members, out, **rest)

    monkeypatch.setattr("export.sweep.families.export_family", strict)
    assert swept(tmp_path / "s", model, scores, None, grid="k=1,4 blocks=3 tokens=288").code == 0
    table = read_table(tmp_path / "s")
    assert {p.name: p.errors for p in table.points if p.errors} == {"k1-b3-t288": {"latency": "member k1-b3: differs"}}
    assert all("qa" in p.latency for p in table.points if not p.errors)


def test_graphs_without_room_are_said_to_have_none(
    model: Path, scores: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise WriteError("the disk is full")

    monkeypatch.setattr("export.sweep.families.export_family", full)
    done = swept(tmp_path / "s", model, scores, data, grid="k=1 blocks=3 tokens=288 form=cpu,int4")
    assert "no latency of k4-b4, k1-b3-t288, k1-b3-t288-int4: the disk is full" in done.out
    assert "no quality of k1-b3-t288-int4: the disk is full" in done.out
    assert done.code == 1, "every setting lacks something"
    assert read_table(tmp_path / "s").point("k4-b4").quality is not None


def test_damaged_results_are_named_and_made_again(
    made: tuple[Path, dict[str, Any]], model: Path, scores: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(made[0], out)
    victim = next(file for file in sorted((out / "jobs").iterdir()) if f'"{model}"' in file.read_text())
    victim.write_text(victim.read_text().replace("w", "v", 1))
    (out / "sweep.json").write_text("{}")
    done = swept(out, model, scores, data, "--no-latency", grid=SMALL)
    assert done.code == 0, done.err
    assert f"{victim.name} is damaged and is computed again" in done.said
    assert "must be a sweep of schema" in done.said
    assert victim.read_text() == (made[0] / "jobs" / victim.name).read_text()


def test_damaged_files_beside_the_table_are_named_and_written_again(
    made: tuple[Path, dict[str, Any]], model: Path, scores: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(made[0], out)
    names = ("samples.json", "answers/k4-b4.json", "answers/k2-b3-t288.json", "pictures.json", "scores.json")
    kept = {name: (out / name).read_bytes() for name in (*names, "pictures/0.jpg")}
    for name, damage in zip(kept, (lambda old: old[:-20], None, lambda _: b"{}"), strict=False):
        if damage is None:
            (out / name).unlink()
        else:
            (out / name).write_bytes(damage(kept[name]))
    (out / "pictures" / "0.jpg").write_bytes(b"no picture")
    (out / "scores.json").write_bytes(b'{"0": "many"}')
    family = {name: (out / "family-cpu-source" / name).read_bytes() for name in ("vision.onnx", "tokenizer.json")}
    for name, content in family.items():
        (out / "family-cpu-source" / name).write_bytes(content[:-100])
    done = swept(out, model, scores, data, grid=SMALL)
    assert done.code == 0, done.err
    for name in names:
        assert f"{out / name} is damaged or gone and is written again" in done.said
    assert "answers/k2-b3-t432.json" not in done.said
    assert (
        f"{out / 'family-cpu-source'} is written again: its files must be as they were written, tokenizer" in done.said
    )
    assert {name: (out / name).read_bytes() for name in kept} == kept
    assert {name: (out / "family-cpu-source" / name).read_bytes() for name in family} == family


def test_a_folder_in_which_nothing_can_be_made_is_refused_in_words(
    made: tuple[Path, dict[str, Any]], model: Path, scores: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(made[0], out)
    shutil.rmtree(out / "answers")
    (out / "answers").write_text("a file")
    done = swept(out, model, scores, data, "--no-latency", grid=SMALL)
    assert done.code == 1
    assert f"{out / 'answers'} must be a folder, and can't be made: a file has its name" in done.said
    below = swept(out / "answers" / "deeper", model, scores, data, "--no-latency", grid=SMALL)
    assert below.code == 1
    assert "must be a folder that can be written to (Not a directory)" in below.said


def test_a_folder_is_one_sweeps(
    made: tuple[Path, dict[str, Any]], model: Path, scores: str, data: Path, tmp_path: Path
) -> None:
    out = made[0]
    table = read_table(out)
    with held(out):
        assert "another one does" in swept(out, model, scores, data, "--no-latency").said
    fewer = swept(out, model, scores, data, "--limit", 2, "--no-latency")
    assert fewer.code == 1
    assert table.data is not None
    assert "another data" in fewer.said
    assert table.data.digest in fewer.said
    other = speaking_molmo(tmp_path / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-4:] = b"\0\0\0\0"
    start = int.from_bytes(weights[:8], "little") + 8
    weights[start : start + 4] = b"\0\0\0\1"
    (other / "model.safetensors").write_bytes(weights)
    refused = swept(out, other, scores, data, "--no-latency")
    assert refused.code == 1
    assert "another model" in refused.said
    assert table.source.digest in refused.said
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert "holds notes.txt" in swept(tmp_path / "mine", model, scores, data, "--no-latency").said
    assert read_table(out) == table


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--grid", "k=9"], "from 1 to 8"),
        (["--grid", "k=1 form=cuda"], "the cuda form runs on cuda, tensorrt"),
        (["--grid", "k=1", "--no-latency"], "--data is missing"),
        (["--grid", "k=1", "--provider", "gpu"], "--provider must be one of"),
        (["--grid", "k=1", "--scores", "preset:vqa-measured"], "keeps all"),
        (["--grid", "k=1", "--workloads", "nowhere.toml"], "no such file"),
        (["--grid", "k=1 blocks=3"], "needs scores"),
        (["--grid", "k=1", "--prune", "0.2"], "--prune goes by"),
        (["--grid", "k=1", "--limit", "2"], "--limit is about samples"),
        (["--grid", "k=1", "--images", "x"], "--images is about samples"),
        (["--grid", "k=1", "--executor", "cloud"], "an executor is one of"),
        (["--grid", "k=1", "--workers", "2"], "--executor local is one worker"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_written(
    model: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    done = knobcast("sweep", model, *words, "--out", tmp_path / "s")
    assert done.code == 1
    assert said in done.said
    assert not (tmp_path / "s").exists()


def test_a_provider_that_does_not_load_is_refused_before_anything_is_written(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unloaded(providers: Sequence[tuple[str, object]]) -> None:
        raise RunError(f"{providers[0][0]} must load")

    monkeypatch.setattr("export.sweep.latency.check_loads", unloaded)
    words = ("sweep", model, "--grid", "k=1", "--data", data, "--provider", "cuda", "--out", tmp_path / "s")
    assert knobcast(*words, "--dry-run").code == 0, "a plan for another machine"
    assert "CUDAExecutionProvider must load" in knobcast(*words).said
    assert not (tmp_path / "s").exists()


def test_pictures_that_can_not_be_seen_are_named_before_anything_is_done(
    model: Path, scores: str, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data.parent, tmp_path / "data")
    (tmp_path / "data" / "1.png").write_bytes(b"\x89PNG nothing more")
    done = swept(tmp_path / "s", model, scores, tmp_path / "data" / data.name)
    assert done.code == 1
    assert "sample '1-first'" in done.said
    assert not (tmp_path / "s").exists()


def test_a_dry_run_says_what_is_to_do(model: Path, scores: str, data: Path, tmp_path: Path) -> None:
    done = swept(tmp_path / "s", model, scores, data, "--dry-run", "--json")
    facts = json.loads(done.out)
    assert len(facts["settings"]) == 9
    assert (facts["samples"], facts["answers"], facts["decoders"], facts["families"]) == (7, 21, 4, 1)
    assert facts["block_evaluations"] < facts["naive_block_evaluations"]
    assert not (tmp_path / "s").exists()
    shown = swept(tmp_path / "s", model, scores, None, "--dry-run")
    assert "9 settings" in shown.out
    assert "k1-b3-t288" in shown.out


def test_pruned_settings_are_listed_and_not_measured(model: Path, data: Path, tmp_path: Path) -> None:
    blocks = [{"index": n, "score": value} for n, value in enumerate((0.9, 0.1, 0.4, 0.8))]
    facts = {"schema": 1, "metric": "drop", "unit": "accuracy, 0..1", "higher_means": "more important"}
    file = tmp_path / "scores.json"
    file.write_text(json.dumps({**facts, "blocks": blocks}))
    done = swept(tmp_path / "s", model, str(file), data, "--no-latency", "--prune", 0.3, grid="k=1,4 blocks=2,3,4")
    assert done.code == 0, done.err
    table = read_table(tmp_path / "s")
    left = {point.name for point in table.points if point.quality is None}
    assert left == {"k1-b2", "k4-b2"}
    assert "predicted to lose 0.500, more than --prune 0.3" in table.point("k1-b2").errors["quality"]
