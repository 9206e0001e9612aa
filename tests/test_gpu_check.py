"""The script for CUDA machines, tried without one: its sections at tiny sizes, its exit codes, its page."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu import check, environment, layer, report
from tests.gpu.check import SECTIONS, Section, check_all, entries, isolated
from tests.gpu.rows import Context, NotAvailableError, Row
from tests.gpu.synthetic import Sizes, write_noise
from tests.support.paths import ROOT
from transform.read import read_checkpoint

EXPORTING = ("model", "default", "static", "commands")


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context(False, tmp_path)


def run(name: str, ctx: Context) -> list[dict[str, Any]]:
    return list(entries(next(s for s in SECTIONS if s.name == name), ctx))


@pytest.mark.parametrize("name", [s.name for s in SECTIONS if s.name not in EXPORTING])
def test_a_section_runs_without_a_device(name: str, ctx: Context) -> None:
    *rows, end = run(name, ctx)
    assert end == {"status": "done"}
    assert len({row["what"] for row in rows}) == len(rows) > 5
    json.dumps(rows)


@pytest.mark.extra
def test_sections_that_export_run_without_a_device(tmp_path: Path) -> None:
    only = [word for name in EXPORTING for word in ("--only", name)]
    out = tmp_path / "gpu.json"
    assert check.main(["--dry-cpu", "--out", str(out), "--work", str(tmp_path), "--budget", "1000", *only]) == 0
    sections = json.loads(out.read_text())["sections"]
    assert {name: found["status"] for name, found in sections.items()} == dict.fromkeys(EXPORTING, "done")


def test_the_layer_is_compared_with_the_right_thing(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another k on one side is a difference beyond the limit."""
    block = layer.Weights.block
    monkeypatch.setattr(layer.Weights, "block", lambda self, x, k, dtype: block(self, x, max(1, k - 1), dtype))
    *rows, end = run("layer", ctx)
    assert end["status"] == "wrong"
    assert [row["passed"] for row in rows if row["what"] == "k 8, 9 tokens: to float32"] == [False]


def test_the_device_reads_experts_as_the_cpu_does(ctx: Context) -> None:
    """The facts about QMoE, where they are known."""
    facts = {row["what"]: row["value"] for row in run("quantised", ctx)[:-1]}
    known = "4 bits, alternating rows, blocks of 32"
    assert facts[known].startswith("reads alternating, renormalised")
    assert facts[f"{known}, router_weights"].startswith("reads alternating, not renormalised")
    assert facts["4 bits, separate halves, blocks of 32"].startswith("refused")


# Noise


def test_noise_is_a_checkpoint_whose_experts_are_stacked(tmp_path: Path) -> None:
    sizes = Sizes(layers=2, width=64, inner=32, experts=4, heads=4, vocab=16, k=2)
    checkpoint = read_checkpoint(write_noise(tmp_path / "noise", sizes))
    assert sum(tensor.nbytes for tensor in checkpoint.tensors.values()) == sizes.nbytes()
    for part in ("gate", "up", "down"):
        starts = [checkpoint.tensor(f"expert.{part}", 1, e).start for e in range(4)]
        assert set(np.diff(starts)) == {64 * 32 * 2}
    gate = checkpoint.tensor("expert.gate", 0)
    values = np.memmap(gate.file, np.float16, "r", gate.start, gate.shape)
    assert 0.015 < values.std() < 0.025


def test_noise_is_written_once(tmp_path: Path) -> None:
    sizes = Sizes(width=64, inner=32, experts=4, heads=4, vocab=16)
    weights = write_noise(tmp_path, sizes) / "model.safetensors"
    written = weights.stat().st_mtime_ns
    write_noise(tmp_path, sizes)
    assert weights.stat().st_mtime_ns == written
    (tmp_path / "config.json").unlink()  # as after a killed run
    write_noise(tmp_path, sizes)
    assert weights.stat().st_mtime_ns != written


# The script


def test_a_machine_without_cuda_is_told_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    lacks = environment.missing()
    if not lacks:
        pytest.skip("there is a CUDA device here")
    assert check.main([]) == 2
    said = capsys.readouterr().err
    assert all(f"- {reason}" in said for reason in lacks)
    assert "docs/gpu.md" in said


def test_sections_run_in_processes_and_are_resumed(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.gpu.check", "--dry-cpu", "--out", str(out), "--work", str(tmp_path)]
    done = subprocess.run([*command, "--only", "environment"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout
    first = json.loads(out.read_text())["sections"]
    assert first["environment"]["status"] == "done"
    again = [*command, "--resume", "--only", "environment", "--only", "operators"]
    done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    second = json.loads(out.read_text())["sections"]
    assert second["environment"] == first["environment"]
    assert list(second) == ["environment", "operators"]
    assert "The machine" not in done.stdout


def failing(ctx: Context) -> Iterator[Row]:
    yield Row("before", 1.0, 2.0)
    raise ValueError("the device is gone")


def wrong(ctx: Context) -> Iterator[Row]:
    yield Row("difference", float("nan"), 1e-3)
    yield Row("fact", float("inf"))


def absent(ctx: Context) -> Iterator[Row]:
    yield Row("before", "seen")
    raise NotAvailableError("not in this version")


@pytest.mark.parametrize(
    ("function", "status", "reason", "code"),
    [
        (failing, "failed", "ValueError: the device is gone", 1),
        (wrong, "wrong", "1 beyond their limits", 1),
        (absent, "not available", "not in this version", 0),
    ],
)
def test_a_section_ends_with_a_status(
    function: Any, status: str, reason: str, code: int, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer, "measure", function)
    section = next(s for s in SECTIONS if s.name == "layer")
    *rows, end = entries(section, ctx)
    assert end == {"status": status, "reason": reason}
    assert rows
    found = {**end, "seconds": 1.0, "rows": rows}
    monkeypatch.setattr(check, "isolated", lambda *_: found)
    assert check_all([section], ctx, None, False, 60.0) == code
    assert reason in "\n".join(report.as_lines("Title", found))


def test_a_section_that_dies_or_hangs_keeps_its_rows(ctx: Context) -> None:
    missing = isolated(Section("nowhere", "", "nowhere.measure", 60), ctx, 60)
    assert missing["status"] == "failed"
    assert "invalid choice" in missing["reason"]
    slow = isolated(next(s for s in SECTIONS if s.name == "layer"), ctx, 0.2)
    assert slow["reason"] == "it was stopped after 0 s"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_section_ends_with_the_script(tmp_path: Path) -> None:
    """Asked to end, it leaves nothing behind that would be measured with the next run."""
    command = [sys.executable, "-m", "tests.gpu.check", "--dry-cpu", "--only", "layer", "--work", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as script:
        children = Path(f"/proc/{script.pid}/task/{script.pid}/children")
        while not (found := children.read_text().split()):
            time.sleep(0.05)
        script.terminate()
        assert script.wait(20) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{found[0]}").exists()


def test_no_time_left_is_no_success_to_resume_from(tmp_path: Path, ctx: Context) -> None:
    out = tmp_path / "gpu.json"
    section = SECTIONS[0]
    assert check_all([section], ctx, out, False, 1.0) == 0
    assert json.loads(out.read_text())["sections"][section.name]["status"] == "skipped"
    assert check_all([section], ctx, out, True, 60.0) == 0
    assert json.loads(out.read_text())["sections"][section.name]["status"] == "done"


# The page


def test_the_page_has_room_for_what_is_measured(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "gpu.md").read_text()
    assert text.count(report.BEGIN) == text.count(report.END) == 1
    page = tmp_path / "gpu.md"
    page.write_text(text)
    rows = [Row("k 4 | x", 2.5, 1e-3, "ms").as_dict(), Row("name", "a\nb").as_dict()]
    results = {"sections": {"layer": {"status": "wrong", "reason": "1 beyond", "seconds": 2.0, "rows": rows}}}
    for _ in range(2):
        report.update_page(page, results, {"layer": "One layer"})
    written = page.read_text()
    assert written.count("## One layer") == 1
    assert "| k 4 / x | 2.5 ms | 0.001 **exceeded** |" in written
    assert "| name | a b |" in written
    assert written.startswith(text.partition(report.BEGIN)[0])
