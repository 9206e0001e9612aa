"""A device whose numbers are known is found again from a few settings; sweeps and bench records are read."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from export.cost.calibrate import Measured, calibrate, spread
from export.cost.count import count
from export.cost.device import Device, read_device
from export.cost.estimate import estimate
from export.cost.fit import fit, nonnegative
from export.cost.work import Cost, Workload
from export.files.measured import Latency
from export.sweep.table import FILE, Point, Source, Table, table_text
from export.sweep.timings import read_timings
from importance.scores import model_digest
from importance.statistics import spearman
from tests.support.bench_records import bench_record
from tests.support.command import knobcast
from tests.support.paths import ROOT
from transform.errors import CheckpointError, KnobError, VerificationError
from transform.knobs import Knobs
from transform.plan import Plan, make_plan
from transform.read import read_checkpoint

NANO = ROOT / "artifacts" / "molmoe-nano"
ASKED = Workload((640, 480), 32, 8)
TRUE = Device("true", "cpu", 8e9, 16e9, 1.5e-6, {"float32": 45e9, "int4": 60e9}, runtime=1.5e8)
KS, DEPTHS, BUDGETS = (1, 2, 4, 6, 8), (8, 10, 12, 14, 16), (288, 432, 1008)


def measured(plan: Plan, device: Device, noise: float = 1.0) -> Measured:
    """As if it had been measured on `device`."""
    counted = count(plan, ASKED)
    made = estimate(counted, plan.form, device)
    seconds = {name: spent * noise / 1e3 for name, spent in made.milliseconds.items()}
    return Measured(plan.name, counted, plan.form, seconds, round(made.peak))


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    source = read_checkpoint(NANO)
    return [
        make_plan(source, Knobs(k, tuple(range(blocks)), tokens, form="int4"))
        for k, blocks, tokens in product(KS, DEPTHS, BUDGETS)
    ]


def test_a_known_device_is_found_from_eight_of_75_settings(plans: list[Plan]) -> None:
    draws = np.random.default_rng(0)
    points = [measured(plan, TRUE, draws.uniform(0.95, 1.05)) for plan in plans]
    found = calibrate(points, 8, "found", "cpu", 8e9)
    assert (len(found.used), found.seen.settings) == (8, 8)
    assert found.unseen is not None
    assert (found.unseen.settings, found.every.settings) == (67, 75)
    assert found.unseen.median < 0.05
    assert found.unseen.rank is not None
    assert found.unseen.rank > 0.99
    assert found.device.rates["int4"] == pytest.approx(60e9, rel=0.2)
    assert found.device.bandwidth == pytest.approx(16e9, rel=0.3)
    assert found.device.operator == pytest.approx(1.5e-6, rel=0.3)
    assert found.device.runtime == pytest.approx(1.5e8, rel=0.01)
    wrong = replace(found.device, rates={"int4": 6e9})
    assert estimate(points[0].counted, points[0].form, wrong).total_ms > 2e3 * points[0].total


def test_two_forms_get_a_rate_each(plans: list[Plan]) -> None:
    others = [make_plan(p.source, replace(p.knobs, form="cpu")) for p in plans[::6]]
    points = [measured(plan, TRUE) for plan in (*plans[::6], *others)]
    found = calibrate(points, 12, "found", "cpu", 8e9).device.rates
    assert found == {"int4": pytest.approx(60e9, rel=0.1), "float32": pytest.approx(45e9, rel=0.1)}


def test_a_gpus_pictures_are_cut_beside_it(plans: list[Plan]) -> None:
    gpu = Device("gpu", "cuda", 8e9, 16e9, 1.5e-6, {"float32": 45e9}, cut=2e9)
    others = [make_plan(p.source, replace(p.knobs, form="cpu")) for p in plans[::5]]
    found = calibrate([measured(plan, gpu) for plan in others], 8, "found", "cuda", 8e9).device
    assert found.cut == pytest.approx(2e9, rel=0.1)
    assert "cut_gb_s" in found.sources


def test_chosen_settings_lie_apart_and_the_same_each_time(plans: list[Plan]) -> None:
    points = [measured(plan, TRUE) for plan in plans]
    chosen = spread(points, 8)
    assert chosen == spread(points, 8)
    knobs = [point.name for point in chosen]
    assert len(set(knobs)) == 8
    assert any("k1-b8-t288" in name for name in knobs)
    assert any("k8-b16-t1008" in name for name in knobs)
    assert spread(points, 100) == points
    with pytest.raises(KnobError, match="there are none"):
        spread([], 8)


def test_too_few_stages_are_refused() -> None:
    with pytest.raises(KnobError, match="need as many measured stages"):
        fit([])


def test_least_squares_never_go_below_zero() -> None:
    draws = np.random.default_rng(1)
    for _ in range(50):
        matrix, target = draws.normal(size=(12, 4)), draws.normal(size=12)
        found = nonnegative(matrix, target)
        slope = matrix.T @ (matrix @ found - target)
        assert (found >= 0).all()
        assert (slope > -1e-9).all()  # where it is zero, more would not help; elsewhere the slope is none
        assert np.abs(slope[found > 0]).max(initial=0) < 1e-9


def test_ranks_share_ties() -> None:
    assert spearman(np.array([1.0, 2, 2, 4]), np.array([10.0, 20, 20, 40])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)


def write_sweep(directory: Path, plans: list[Plan], device: Device = TRUE, digest: str | None = None) -> Path:
    """A finished sweep, as far as latencies go."""
    directory.mkdir()
    source = plans[0].source
    points = []
    for plan in plans:
        took = estimate(count(plan, ASKED), plan.form, device)
        ms = took.milliseconds
        latency = Latency(ms["vision"], ms["prefill"], ms["decode"], took.total_ms, (1.0, 2.0), took.peak)
        top_k = plan.target.settings.top_k
        knobs = plan.knobs
        assert not isinstance(knobs.tokens, str)
        points.append(
            Point(
                plan.name, str(top_k[0]), top_k, plan.keep_blocks, knobs.tokens, plan.form.name, knobs.dtype, "",
                Cost(1, 1, plan.bytes, {}), None, {"qa": latency},
            )
        )  # fmt: skip
    settings = source.settings
    made = Source("nano", str(NANO), "molmo", digest or model_digest(source), settings.layers, settings.top_k, 64)
    machine = {"cpu": "A processor", "threads": 1, "gpu": None}
    table = Table(made, None, {"qa": ASKED}, "", "", points[0].name, machine, tuple(points))
    (directory / FILE).write_text(table_text(table))
    return directory


def test_a_sweep_becomes_a_device_that_plan_takes(plans: list[Plan], tmp_path: Path) -> None:
    sweep, out = write_sweep(tmp_path / "sweep", plans[::5]), tmp_path / "here.toml"
    done = knobcast("calibrate", out, "--from", sweep, "--points", "6", "--memory-gb", "4", "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["all_errors"]["median_error"] < 0.02
    assert (len(said["used"]), said["unseen_errors"]["settings"]) == (6, 9)
    device = read_device(out)
    assert (device.name, device.provider, device.memory) == ("A processor, threads: 1", "cpu", 4e9)
    assert device.sources["tflops.int4"] == "fitted to 6 measured settings"
    again = knobcast("calibrate", out, "--from", sweep)
    assert again.code == 1
    assert "--force" in again.said
    shown = knobcast("calibrate", out, "--from", sweep, "--force", "--name", "mine")
    assert "not seen" in shown.out
    kept = out.read_text()
    for words, said in (
        (("--name", ""), "name must be a short text"),
        (("--memory-gb", 0), "memory_gb must be a number"),
    ):
        refused = knobcast("calibrate", out, "--from", sweep, "--force", *words)
        assert (refused.code, out.read_text()) == (1, kept), "a file that plan can't read"
        assert said in refused.said
    assert "estimate for mine" in knobcast("plan", "--form", "int4", "--device", out).out


def test_what_is_no_measurement_is_refused(plans: list[Plan], tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", plans[:3], digest="0" * 64)
    with pytest.raises(KnobError, match="another model"):
        read_timings([sweep])
    record = json.loads((sweep / FILE).read_text())
    (sweep / FILE).write_text(json.dumps({**record, "machine": None}))
    with pytest.raises(KnobError, match="must hold latencies"):
        read_timings([sweep])
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(KnobError, match="a record of `knobcast bench"):
        read_timings([tmp_path / "x.json"])
    (tmp_path / "y.toml").write_text("x = 1")
    with pytest.raises(CheckpointError, match=r"must be JSON.*a record of `knobcast bench"):
        read_timings([tmp_path / "y.toml"])
    assert "Choose such a name" in knobcast("calibrate", tmp_path / "x.json", "--from", sweep).said
    assert "by --from" in knobcast("calibrate", tmp_path / "x.toml").said


def test_a_bench_record_is_one_setting(molmo: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench_record(molmo)))
    (point,) = read_timings([path]).points
    assert point.seconds == {"vision": 0.5, "prefill": 0.25, "decode": 0.01}
    assert point.total == pytest.approx(0.5 + 0.25 + 8 * 0.01)
    assert (point.counted.tokens.crops, point.counted.tokens.features, point.counted.cut) == (3, 384, ())
    assert point.counted.work.positions == 500
    other = tmp_path / "other.json"
    other.write_text(json.dumps(bench_record(molmo, machine={"cpu": "Another", "threads": 1})))
    with pytest.raises(KnobError, match="one machine's measurements"):
        read_timings([path, other])
    with pytest.raises(KnobError, match="must be above 0"):
        calibrate([replace(point, seconds={"prefill": 0.0, "decode": 1.0})], 8, "x", "cpu", 1e9)
    asked = {"crops": 3, "image_tokens": 384, "prompt_tokens": 0, "new_tokens": 9}
    other.write_text(json.dumps(bench_record(molmo, workload=asked)))
    with pytest.raises(KnobError, match="whole numbers from 1"):
        read_timings([other])
    other.write_text(json.dumps(bench_record(molmo, workload={"crops": "3"})))
    with pytest.raises(VerificationError, match="workload"):
        read_timings([other])
