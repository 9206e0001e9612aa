"""`knobcast bench` on tiny variants: what is in the record, who is listed, what is refused. Times are never judged."""

import json
import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from export.bench import contestants
from export.bench.contestants import parse_against, unavailable
from export.bench.cutting import open_cutter
from export.bench.gguf_file import why_not
from export.bench.job import BenchJob
from export.bench.machine import machine_facts, parse_device_memory, physical_cores, process_memory
from export.bench.measure import first_difference
from export.bench.process import Contestant, ContestantError, without_folders
from export.bench.record import BenchRecord
from export.bench.show import show_bench
from export.bench.workload import Workload, make_workload
from export.command.main import app
from export.family.family import export_family, plan_family
from export.gate.picture import drawn_picture
from export.run.graphs import Graphs
from export.run.io_file import policy_in
from export.run.session import RunError
from export.variant import export_variant
from tests.support.graphs import greedy, session
from transform.errors import KnobcastError, KnobError, VerificationError, WriteError
from transform.knobs import Knobs
from transform.molmoe.preprocessing import preprocess
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.strict_json import Record

PROMPT, NEW, RUNS = 12, 5, 2
SMALL = ["--prompt-tokens", str(PROMPT), "--new-tokens", str(NEW), "--runs", str(RUNS), "--threads", "1"]
ONCE = [*SMALL[:5], "1", *SMALL[6:]]


@pytest.fixture(scope="module")
def text_variant(olmoe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "text"
    export_variant(make_plan(read_checkpoint(olmoe), Knobs(k=2, keep=(0, 3, 5))), out, verify=False)
    return out


@pytest.fixture(scope="module")
def image_variant(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "image"
    export_variant(make_plan(read_checkpoint(molmo), Knobs(k=2, tokens=288)), out, verify=False)
    return out


def bench(directory: Path, *arguments: str, code: int = 0) -> Record:
    """The record that --json prints."""
    done = CliRunner().invoke(app, ["bench", str(directory), "--json", *arguments])
    assert done.exit_code == code, done.exception or done.output
    return dict(json.loads(done.stdout))


def by_name(record: Record) -> dict[str, Record]:
    return {contestant["name"]: contestant for contestant in record["contestants"]}


@pytest.fixture(scope="module")
def text_record(text_variant: Path) -> Record:
    return bench(text_variant, *SMALL, "--against", "grouped_mm,eager")


@pytest.fixture(scope="module")
def image_record(image_variant: Path) -> Record:
    return bench(image_variant, "--new-tokens", "4", "--runs", "1", "--warmup", "0", "--against", "eager,grouped_mm")


def test_all_make_as_many_steps_and_the_same_tokens(text_record: Record) -> None:
    found = by_name(text_record)
    assert list(found) == ["graphs", "grouped_mm", "eager"]
    assert text_record["tokens_equal"] is True
    assert text_record["baseline"] == "grouped_mm"
    assert text_record["workload"]["steps"] == NEW - 1
    for record in found.values():
        assert record["status"] == "measured"
        assert [len(run["steps"]) for run in record["runs"]] == [NEW - 1] * RUNS  # warm-up runs aren't among them
        assert record["step_seconds"]["steps"] == RUNS * (NEW - 1)
        assert len(record["tokens"]) == NEW
        assert record["first_difference"] is None
        assert record["vision_seconds"] is None


def test_the_tokens_are_those_of_a_plain_loop(text_variant: Path, text_record: Record) -> None:
    io = json.loads((text_variant / "io.json").read_text())
    work = make_workload(text_variant, io, PROMPT, NEW)
    text = session(text_variant, "text.onnx")
    mask = np.ones((1, PROMPT), np.int64)
    ids, _ = greedy(text, lambda chosen: {"input_ids": chosen}, {"input_ids": work.ids}, mask, NEW)
    assert by_name(text_record)["graphs"]["tokens"] == ids[0].tolist()


def test_figures_are_those_of_the_runs(text_record: Record) -> None:
    found = by_name(text_record)
    for record in found.values():
        steps = [second for run in record["runs"] for second in run["steps"]]
        assert record["step_seconds"]["mean"] == pytest.approx(np.mean(steps), rel=1e-5)
        assert record["step_seconds"]["p50"] == pytest.approx(np.median(steps), rel=1e-5)
        assert record["step_seconds"]["p95"] == pytest.approx(np.percentile(steps, 95), rel=1e-5)
        assert record["tokens_per_second"] == pytest.approx(1 / np.mean(steps), rel=1e-3)
        prefill = [run["prefill"] for run in record["runs"]]
        assert record["prefill_seconds"]["median"] == pytest.approx(np.median(prefill), rel=1e-5)
        base = found["grouped_mm"]
        assert record["ratios"] == {
            "vision": None,
            "prefill": round(record["prefill_seconds"]["median"] / base["prefill_seconds"]["median"], 4),
            "step": round(record["step_seconds"]["p50"] / base["step_seconds"]["p50"], 4),
        }
    assert found["grouped_mm"]["ratios"]["step"] == 1


def test_memory_is_each_contestants_own(text_record: Record) -> None:
    found = by_name(text_record)
    for record in found.values():
        memory = record["memory"]
        assert memory["peak_bytes"] > memory["anonymous_bytes_at_load"] > memory["anonymous_bytes_before_load"] > 0
        assert memory["device_bytes"] is None
    # a process without torch: its libraries alone would be more
    assert found["graphs"]["memory"]["peak_bytes"] < found["eager"]["memory"]["anonymous_bytes_at_load"] * 2
    assert found["graphs"]["memory"]["anonymous_bytes_before_load"] < 80 << 20


def test_the_record_says_nothing_about_where_it_was_made(text_variant: Path, text_record: Record) -> None:
    import platform

    said = json.dumps({**text_record, "directory": ""})
    assert platform.node() not in said
    assert str(text_variant.parent) not in said
    assert set(text_record["machine"]) == {"cpu", "cores", "threads", "load", "gpu", "system", "python", "versions"}
    assert text_record["machine"]["threads"] == 1


def test_a_picture_is_timed_apart_from_the_prompt(image_record: Record) -> None:
    work = image_record["workload"]
    assert work["prompt_tokens"] == 512
    assert 0 < work["image_tokens"] < 512
    assert work["crops"] == 2
    assert image_record["tokens_equal"] is True
    for record in image_record["contestants"]:
        assert record["vision_seconds"]["median"] > 0
        assert record["ratios"]["vision"] > 0
    assert image_record["preprocess"]["by"] == "graph"
    assert image_record["preprocess"]["seconds"]["median"] > 0


def test_a_picture_is_cut_as_run_cuts_it(image_variant: Path, tmp_path: Path) -> None:
    """By the graph that is shipped, where there is one; its arrays are those that `preprocess` gives for PyTorch."""
    io = json.loads((image_variant / "io.json").read_text())
    Image.fromarray(drawn_picture(120, 260)).save(tmp_path / "tall.png")
    made = preprocess(tmp_path / "tall.png", **policy_in(io["vision"]))
    behind = np.where(made.image_input_idx < 0, -1, made.image_input_idx + 1)
    for asked, by in ((None, "graph"), ("python", "python")):
        cutter = open_cutter(image_variant, io, tmp_path / "tall.png", asked)
        assert cutter is not None
        assert cutter.by == by
        work = make_workload(image_variant, io, None, 2, cutter.cut())
        np.testing.assert_array_equal(work.picture["image_input_idx"][0], behind)
        np.testing.assert_allclose(work.picture["images"], made.images, rtol=0, atol=1e-5)
    older = Path(shutil.copytree(image_variant, tmp_path / "older"))
    (older / "preprocess.onnx").unlink()
    cutter = open_cutter(older, io, None)
    assert cutter is not None
    assert cutter.by == "python"
    with pytest.raises(RunError, match=r"has no preprocess\.onnx"):
        open_cutter(older, io, None, "graph")


def test_the_picture_reaches_the_tokens(image_variant: Path, tmp_path: Path) -> None:
    """Equal tokens would prove nothing if every contestant ignored the picture."""
    io = json.loads((image_variant / "io.json").read_text())
    cutter = open_cutter(image_variant, io, None)
    assert cutter is not None
    seen = make_workload(image_variant, io, None, 2, cutter.cut())
    seen.save(tmp_path / "work.npz")
    blind = Workload(seen.ids, 2, {**seen.picture, "images": seen.picture["images"] * 0}, "")
    from export.bench.engine_graphs import Engine

    job = BenchJob(str(image_variant), "cpu", 1)
    logits = []
    for work in (Workload.load(tmp_path / "work.npz"), blind):
        engine = Engine(job, work)
        engine.start()
        engine.see()
        logits.append(engine.sequence.prefill(work.ids))
    assert np.abs(logits[0] - logits[1]).max() > 1e-4


def test_a_member_of_a_family_is_measured_with_its_own_k_and_blocks(olmoe: Path, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps({str(i): 1.0 - 0.1 * (i in (1, 2)) for i in range(6)}))
    base, members = plan_family(read_checkpoint(olmoe), "k=1 blocks=4", scores=str(tmp_path / "scores.json"))
    export_family(base, members, tmp_path / "family", verify=False)
    record = bench(tmp_path / "family", *ONCE, "--member", "k1-b4", "--against", "eager")
    assert (record["layers"], record["top_k"]) == (4, [1] * 4)
    assert record["tokens_equal"] is True
    whole = bench(tmp_path / "family", *ONCE, "--against", "none")
    assert by_name(whole)["graphs"]["tokens"] != by_name(record)["graphs"]["tokens"]
    assert whole["tokens_equal"] is None
    assert whole["baseline"] is None
    with pytest.raises(KnobError, match="k1-b4; got 'k9'"):
        CliRunner().invoke(app, ["bench", str(tmp_path / "family"), "--member", "k9"], catch_exceptions=False)


def test_who_fails_is_listed_and_the_others_are_measured(text_variant: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(text_variant, broken)
    (broken / "text.onnx").write_bytes((text_variant / "text.onnx").read_bytes()[:-900])
    record = bench(broken, *SMALL, "--against", "eager", code=1)
    found = by_name(record)
    assert found["graphs"]["status"] == "failed"
    assert "text.onnx" in found["graphs"]["reason"]
    assert str(tmp_path) not in found["graphs"]["reason"]
    assert found["eager"]["status"] == "measured"
    assert record["baseline"] == "eager"
    assert record["tokens_equal"] is None


def test_a_crash_is_told_with_its_last_words(tmp_path: Path) -> None:
    process = Contestant(BenchJob("", "cpu", 1, name="graphs", workload=str(tmp_path / "none.npz")), 60)
    with pytest.raises(ContestantError, match=r"ended with code 1 during load.*No such file") as caught:
        process.ask("load")
    assert "/" not in str(caught.value).split("No such file")[1]


def test_silence_is_an_error(text_variant: Path, tmp_path: Path) -> None:
    io = json.loads((text_variant / "io.json").read_text())
    make_workload(text_variant, io, PROMPT, NEW).save(tmp_path / "work.npz")
    job = BenchJob(str(text_variant), "cpu", 1, name="graphs", workload=str(tmp_path / "work.npz"))
    process = Contestant(job, 0.01)
    with pytest.raises(ContestantError, match=r"load must answer within 0\.01 seconds"):
        process.ask("load")
    assert process._process.poll() is not None


def test_a_process_goes_when_nobody_waits_for_it(text_variant: Path, tmp_path: Path) -> None:
    io = json.loads((text_variant / "io.json").read_text())
    make_workload(text_variant, io, PROMPT, 400).save(tmp_path / "work.npz")
    job = BenchJob(str(text_variant), "cpu", 1, name="graphs", workload=str(tmp_path / "work.npz"))
    process = Contestant(job, 60)
    process.ask("load")
    assert process._process.stdin is not None
    process._process.stdin.write(b"run\n")
    process._process.stdin.flush()
    process.close()
    assert process._process.poll() == 0
    assert process._answers.get(timeout=5) == b""  # it didn't finish its run


def test_who_could_be_measured_is_listed_before_anything_is(text_variant: Path) -> None:
    record = bench(text_variant, *SMALL, "--dry-run", "--against", "eager,exporter")
    states = by_name(record)
    assert states["graphs"]["status"] == states["eager"]["status"] == "available"
    assert (states["exporter"]["status"] == "available") == (find_spec("onnxscript") is not None)
    shown = CliRunner().invoke(app, ["bench", str(text_variant), *SMALL, "--dry-run"])
    assert "grouped_mm" in shown.stdout
    assert "available" in shown.stdout


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants, "find_spec", lambda name: None)
    assert "the package torch of the extra [full]" in unavailable(("graphs", "eager"), 10, "cpu")["eager"]
    monkeypatch.setattr(contestants, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    assert unavailable(("graphs", "exporter"), 10, "cpu") == {
        "exporter": "needs the package onnxscript: pip install onnxscript"
    }


def test_who_is_left_out_is_named_before_anything_is_measured(
    text_variant: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contestants, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))

    def started(*_: object) -> None:
        raise VerificationError("started")

    monkeypatch.setattr("export.bench.measure.measure", started)
    done = CliRunner().invoke(app, ["bench", str(text_variant), *SMALL, "--against", "exporter"])
    assert str(done.exception) == "started"
    assert "warning: exporter is left out: needs the package onnxscript: pip install onnxscript" in done.stderr


def test_models_that_do_not_fit_together_are_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants, "free_memory", lambda: 600)
    found = unavailable(("graphs", "eager", "grouped_mm"), 100, "cpu")
    assert list(found) == ["grouped_mm"]
    assert "400 bytes" in found["grouped_mm"]
    assert "200 are free" in found["grouped_mm"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--new-tokens", "1"], KnobError, "at least 2"),
        (["--prompt-tokens", "0"], KnobError, "got 0. Give at least 1"),
        (["--prompt-tokens", "500", "--new-tokens", "13"], KnobError, "512 positions: 500 and 13 are 513"),
        ([], KnobError, "512 positions: 512 and 64 are 576"),
        (["--against", "eager,tensorflow"], KnobError, "exporter, llama.cpp .* got 'eager,tensorflow'"),
        (["--against", "eager,eager"], KnobError, "at most once"),
        (["--against", ""], KnobError, "got ''"),
        (["--provider", "npu"], KnobError, "cpu, cuda, tensorrt, got 'npu'"),
        (["--image", "x.png", *SMALL], KnobError, "text-only olmoe"),
        (["--member", "k2-b3"], KnobError, "family.json"),
        (["--preprocess", "magic", *SMALL], RunError, "by graph or python, got 'magic'"),
        ([*SMALL, "--out", "/nowhere/x.json"], WriteError, "existing folder"),
    ],
)
def test_what_is_refused(text_variant: Path, arguments: list[str], error: type[KnobcastError], words: str) -> None:
    with pytest.raises(error, match=words):
        CliRunner().invoke(app, ["bench", str(text_variant), *arguments], catch_exceptions=False)


def test_directories_without_graphs_are_refused(olmoe: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="no variant"):
        CliRunner().invoke(app, ["bench", str(olmoe)], catch_exceptions=False)
    plan = make_plan(read_checkpoint(olmoe), Knobs(k=2))
    export_variant(plan, tmp_path / "plain", onnx=False, verify=False)
    with pytest.raises(KnobError, match=r"io\.json.*--no-onnx"):
        CliRunner().invoke(app, ["bench", str(tmp_path / "plain")], catch_exceptions=False)


def test_graphs_that_no_provider_here_has_are_refused_before_others_are_measured(olmoe: Path, tmp_path: Path) -> None:
    export_variant(make_plan(read_checkpoint(olmoe), Knobs(k=2, form="cuda")), tmp_path / "cuda", verify=False)
    with pytest.raises(RunError, match="fused experts"):
        CliRunner().invoke(app, ["bench", str(tmp_path / "cuda"), *SMALL], catch_exceptions=False)
    done = CliRunner().invoke(app, ["bench", str(tmp_path / "cuda"), *SMALL, "--dry-run", "--json"])
    states = {c["name"]: c["status"] for c in json.loads(done.stdout)["contestants"]}
    assert states["graphs"] == "unavailable"


def test_a_picture_needs_room(image_variant: Path) -> None:
    with pytest.raises(KnobError, match="the picture with its marks"):
        CliRunner().invoke(app, ["bench", str(image_variant), "--prompt-tokens", "100"], catch_exceptions=False)


def test_an_existing_record_is_kept(text_variant: Path, tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    file.write_text("{}")
    with pytest.raises(WriteError, match="--force"):
        CliRunner().invoke(app, ["bench", str(text_variant), *SMALL, "--out", str(file)], catch_exceptions=False)
    record = bench(text_variant, *ONCE, "--against", "none", "--out", str(file), "--force")
    assert json.loads(file.read_text()) == record


def test_the_table_has_every_contestant(text_record: Record) -> None:
    console = Console(width=120, record=True, highlight=False)
    failed = {"name": "exporter", "what": "", "status": "unavailable", "reason": "needs [this]"}
    parted = [{**text_record["contestants"][0], "first_difference": None}, *text_record["contestants"][1:]]
    parted[1] = {**parted[1], "first_difference": 3}
    record = {**text_record, "tokens_equal": False, "contestants": [*parted, failed]}
    show_bench(cast("BenchRecord", record), console)
    said = console.export_text()
    for words in ("step p95, ms", "prefill / grouped_mm's", "unavailable exporter: needs [this]", "4 steps"):
        assert words in said
    assert "tokens equal: no (grouped_mm: first difference at step 3)" in said
    assert "picture" not in said
    assert "cpu form; batch 1" in said
    show_bench(cast("BenchRecord", {**record, "form": "int4", "activations": "int8"}), console)
    assert "int4 form, int8 activations; batch 1" in console.export_text()
    cut = {"by": "graph", "seconds": {"median": 0.5, "least": 0.4, "most": 0.6}}
    show_bench(cast("BenchRecord", {**record, "preprocess": cut}), console)
    assert "cutting the picture, by preprocess.onnx: 0.500 s, in no row" in console.export_text()


def test_words_of_a_text_where_there_is_a_tokenizer(text_variant: Path) -> None:
    nano = Path(__file__).parent.parent / "artifacts" / "molmoe-nano"
    io = json.loads((text_variant / "io.json").read_text())
    drawn = make_workload(text_variant, io, 40, 2)
    written = make_workload(nano, io, 40, 2)
    assert (drawn.source, written.source) == ("drawn", "text")
    assert drawn.ids.shape == written.ids.shape == (1, 40)
    assert len(set(written.ids[0].tolist())) > 10


def test_small_parts() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [0, 2, 4]) == 0
    assert parse_against(" eager, exporter") == ("eager", "exporter")
    assert parse_against("none") == ()
    assert without_folders("File '/a/b/c.py': no /x/y z, 1/2, http://h/p") == "File 'c.py': no y z, 1/2, http://h/p"
    assert parse_device_memory("12, 300\n7, 100\n12, 20\n112, 5\n12, [N/A]\n", 12) == 320 << 20
    assert parse_device_memory("", 12) is None
    assert 1 <= physical_cores() <= 4096
    assert set(process_memory()) == {"peak_bytes", "anonymous_bytes"}
    assert machine_facts(3, gpu=False)["threads"] == 3


@pytest.mark.extra
def test_the_exporters_graph_is_measured(olmoe: Path, molmo: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the package onnxscript isn't installed")
    for name, source in (("text", olmoe), ("image", molmo)):
        plan = make_plan(read_checkpoint(source), Knobs(k=2, keep=(0, 3), tokens=288 if source == molmo else None))
        export_variant(plan, tmp_path / name, verify=False)
        record = bench(
            tmp_path / name, "--prompt-tokens", "440", "--new-tokens", "4", "--runs", "1", "--against", "exporter"
        )
        assert by_name(record)["exporter"]["status"] == "measured"
        assert by_name(record)["exporter"]["prepare_seconds"] > 0
        assert record["tokens_equal"] is True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm_topk_prob": True}, "has no norm_topk_prob for olmoe"),
        ({"clip_qkv": 8.0}, "has no clip_qkv for olmoe"),
        ({}, "has one k for all blocks, this variant has \\[1, 2"),
    ],
)
def test_what_llama_cpp_has_not_is_said(olmoe: Path, change: Record, words: str) -> None:
    source = read_checkpoint(olmoe)
    given = replace(source, config={**source.config, **change})
    ks = [2] * source.settings.layers if change else [1, *[2] * (source.settings.layers - 1)]
    assert re.search(words, str(why_not(given, ks)))


def test_llama_cpp_takes_olmoe_alone_and_names_its_package(
    molmo: Path, olmoe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_checkpoint(olmoe)
    assert why_not(source, source.settings.top_k) is None
    assert "takes variants of olmoe models, this is a molmo" in str(why_not(read_checkpoint(molmo), [8]))
    monkeypatch.setattr(contestants, "find_spec", lambda name: None if name == "xllamacpp" else find_spec(name))
    lacks = {"llama.cpp": "needs the package xllamacpp: pip install -e '.[llamacpp]'"}
    assert unavailable(("graphs", "llama.cpp"), 10, "cpu") == lacks


@pytest.mark.extra
def test_llama_cpp_makes_tokens_of_the_same_weights(olmoe: Path, tmp_path: Path) -> None:
    """Its rows are rounded to 8 bits as well, so that later tokens may differ: the first is the graphs' own choice, or
    nearly so."""
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    out = tmp_path / "v"
    knobs = Knobs(k=2, form="int4", activations="int8")
    export_variant(make_plan(read_checkpoint(olmoe), knobs), out, verify=False)
    found = by_name(bench(out, *SMALL, "--against", "llama.cpp"))
    assert found["llama.cpp"]["status"] == "measured", found["llama.cpp"].get("reason")
    assert len(found["llama.cpp"]["tokens"]) == NEW
    first = found["llama.cpp"]["tokens"][0]
    graphs = Graphs(out)
    ids = make_workload(out, graphs.io, PROMPT, NEW, None).ids
    logits, _ = graphs.step(ids, np.ones_like(ids), graphs.empty_cache(1))
    last = logits[0, -1]
    assert last.max() - last[first] < 0.1 * last.std()
