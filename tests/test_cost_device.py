"""Device files are read strictly, name their sources, and predict by the roofline; `plan --device` says *estimate*."""

import json
from pathlib import Path

import pytest

from export.cost.count import STAGES, count
from export.cost.device import Device, find_device, known_devices, parse_device, read_device
from export.cost.estimate import estimate, stage_seconds
from export.cost.part import Part
from export.cost.work import Workload
from tests.support.command import knobcast
from tests.support.paths import ROOT
from transform.errors import KnobError
from transform.forms import form_named
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint

NANO = ROOT / "artifacts" / "molmoe-nano"
GOOD = """
name = "A board"
provider = "cuda"
memory_gb = 8
bandwidth_gb_s = 68
operator_us = 10

[tflops]
float32 = 1.28
"""
BOARD = parse_device(GOOD.encode(), "good")


def test_a_file_says_what_it_says() -> None:
    assert Device("A board", "cuda", 8e9, 68e9, 1e-5, {"float32": 1.28e12}) == BOARD


@pytest.mark.parametrize("name", known_devices())
def test_every_number_that_comes_with_knobcast_has_its_source(name: str) -> None:
    device = find_device(name)
    numbers = {"memory_gb", "bandwidth_gb_s", "operator_us", *(f"tflops.{kind}" for kind in device.rates)}
    assert device.sources.keys() == numbers
    assert device.rates.keys() == {"float32", "float16"}
    assert all(len(text) > 20 for text in device.sources.values())
    assert "assumed" in device.sources["operator_us"]


def test_a_device_written_is_a_device_read() -> None:
    made = Device('Q "x" \\ é', "cpu", 8e9, 1e18, 1.5e-6, {"int4": 4.6e10}, 1e8, 2e9, {"tflops.int4": "fitted\nto 8"})
    assert parse_device(made.text().encode(), "made") == made


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bandwidth_gb_s = 68\n", "", r"x\.toml: .* bandwidth_gb_s missing"),
        ("memory_gb = 8\nbandwidth_gb_s = 68\n", "", "memory_gb, bandwidth_gb_s missing"),
        ("float32 = 1.28\n", "", r"tflops\.float32 missing"),
        ("operator_us = 10", "operator_us = -1", "operator_us must be a number from 0"),
        ("= 68", "= 0", "bandwidth_gb_s must be a number above 0"),
        ("= 68", "= nan", "bandwidth_gb_s must be a number above 0"),
        ("= 68", "= inf", "bandwidth_gb_s must be a number above 0"),
        ("= 68", "= true", "bandwidth_gb_s must be a number above 0"),
        ("= 68", '= "68"', "bandwidth_gb_s must be a number above 0"),
        ("= 68", f"= {10**400}", "bandwidth_gb_s must be a number above 0"),
        ("float32 =", "float64 =", "tflops has the keys"),
        ('"cuda"', '"vulkan"', "provider must be one of"),
        ('"A board"', "7", "name must be a short text"),
        ("operator_us", "operator_ms", "a device file has the keys"),
        ("[tflops]\nfloat32 = 1.28", "tflops = 3", "tflops must be a table"),
        ("= 1.28", "= ", "must be TOML"),
        ("= 1.28", "= 1.28\n[sources]\nmemory_gb = 3", "a text per number"),
    ],
)
def test_a_damaged_file_is_refused_by_name(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in GOOD
    path = tmp_path / "x.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(KnobError, match=message) as caught:
        find_device(str(path))
    assert "x.toml" in str(caught.value)


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KnobError, match="one of jetson-agx-orin-64gb"):
        find_device("jetson")
    with pytest.raises(KnobError, match="can be read"):
        read_device(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(KnobError, match="folder"):
        read_device(tmp_path / "folder.toml")


def test_a_part_waits_for_products_or_for_bytes_and_each_operator_costs() -> None:
    device = Device("d", "cpu", 1e9, 1e9, 1e-6, {"float32": 1e9})
    parts = (Part("a", 3_000_000, 1_000_000, 0, 2), Part("b", 1_000_000, 1_000_000, 1_000_000, 1))
    assert stage_seconds(parts, 1e9, device) == pytest.approx(3e-3 + 2e-3 + 3e-6)


def test_an_estimate_adds_up() -> None:
    plan = make_plan(read_checkpoint(NANO), Knobs(tokens=432))
    counted = count(plan, Workload((640, 480), 32, 8))
    beside, own = (
        estimate(counted, plan.form, Device("d", p, 8e9, 1e10, 1e-6, {"float32": 1e11})) for p in ("cuda", "cpu")
    )
    assert tuple(beside.milliseconds) == STAGES
    parts = beside.milliseconds
    assert beside.total_ms == pytest.approx(parts["vision"] + parts["prefill"] + 7 * parts["decode"])
    assert (beside.with_cut, own.with_cut) == (False, True)
    assert own.milliseconds["vision"] > parts["vision"]
    cutter = Device("d", "cuda", 8e9, 1e10, 1e-6, {"float32": 1e11}, runtime=5e6, cut=1e9)
    known = estimate(counted, plan.form, cutter)
    assert known.milliseconds["vision"] == pytest.approx(parts["vision"] + sum(p.bytes for p in counted.cut) / 1e6)
    assert known.peak == beside.peak + 5_000_000


def test_a_rate_is_of_the_codes_or_of_what_is_computed_in() -> None:
    rates = {"float32": 1.0, "int4": 2.0}
    device = Device("d", "cpu", 1, 1, 0, rates)
    assert [device.rate(form_named(name)) for name in ("cpu", "int4", "int8")] == [1.0, 2.0, 1.0]
    with pytest.raises(KnobError, match=r"must say how fast it multiplies float16 .* tflops of float32"):
        BOARD.rate(form_named("cuda"))
    with pytest.raises(KnobError, match="the int4 form runs on cpu"):
        BOARD.rate(form_named("int4"))


def test_plan_prints_an_estimate_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text(GOOD)
    shown = knobcast("plan", "--k", "4", "--tokens", "432", "--device", str(file))
    assert "estimate for A board: a picture of 640×480" in shown.out
    assert "without the time that cutting the picture takes" in shown.out
    record = json.loads(knobcast("plan", "--device", str(file), "--workload", "20:3", "--json").out)["estimate"]
    assert record["estimate"] is True
    assert record["stages"].keys() == {"prefill", "decode"}
    assert record["work"]["positions"] == 21
    assert record["workload"] == {"image": None, "prompt": 20, "new": 3}
    lost = knobcast("plan", "--workload", "20:3")
    assert lost.code == 1
    assert "Give --device" in lost.said
