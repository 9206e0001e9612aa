"""A graph that onnxruntime is too old for is refused with operator and version; a damaged one is called damaged."""

import json
import re
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.gate.op_checks import check_operators
from export.run.graphs import Graphs
from export.run.load_errors import shortened, too_old_to_load
from export.run.oldest import OPERATORS, QMOE, older_than_stated, too_old, too_old_for
from export.run.session import RunError, open_session
from export.variant import export_variant
from tests.support.graphs import fused, graph_file
from tests.support.paths import FIXTURES, ROOT
from tests.support.variants import write_variant
from transform.errors import VerificationError
from transform.forms import FORMS, form_named
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint

HERE = re.escape(onnxruntime.__version__)
NEEDED = re.escape(
    "QMoE as of onnxruntime 1.25, this is 1.24.4. Install onnxruntime 1.25 or later, or export with --form cpu."
)
# What 1.24.4 says of an int4 graph, the signature shortened.
SCHEMA = (
    "[ONNXRuntimeError] : 10 : INVALID_GRAPH : Load model from V/text.onnx failed:This is an invalid model. In Node, "
    '("n72", QMoE, "com.microsoft", -1) : ("v72": tensor(float),"",) -> ("v76",) , Error Node(n72) with '
    "schema(com.microsoft::QMoE:1) has input size 15 not in range [min=7, max=14]."
)


def node(kind: str, inputs: str = "x", domain: str = "com.microsoft", **attributes: Any) -> Any:
    return helper.make_node(kind, list(inputs), ["y"], domain=domain, **attributes)


@pytest.mark.parametrize(
    ("version", "old"),
    [("1.9.0", True), ("1.17.3", True), ("1.24.4", True), ("1.25.0", False), ("1.31.1", False), ("2.0", False)],
)
def test_quantised_experts_need_a_version(version: str, old: bool) -> None:
    assert (too_old("text.onnx", {"Gemm", "com.microsoft::QMoE"}, version) is not None) == old
    for form in ("int4", "int8"):
        assert (too_old_for(form_named(form), version) is not None) == old
    assert too_old("text.onnx", {"Gemm", "com.microsoft::MoE"}, version) is None
    assert too_old_for(form_named("cpu"), version) is None
    assert {form.oldest for form in FORMS if form.bits} == {OPERATORS[QMOE]}


def test_an_older_onnxruntime_is_refused_before_the_graph_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fused(tmp_path / "text.onnx", "QMoE")
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")
    with pytest.raises(RunError, match=f"text.onnx needs {NEEDED}"):
        open_session(path, {})


def test_an_onnxruntime_older_than_io_json_states_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_variant(FIXTURES, tmp_path / "v")
    stated = json.loads((directory / "io.json").read_text())["onnxruntime_by_graph"]
    for part, graph in (("preprocess", "preprocess.onnx"), ("vision", "vision.onnx"), ("text", "text.onnx")):
        oldest = stated[graph].removeprefix(">=")
        monkeypatch.setattr(onnxruntime, "__version__", "1.11.1")
        with pytest.raises(RunError, match=rf"{graph} needs onnxruntime {oldest} or later.*this is 1\.11\.1\. Install"):
            getattr(Graphs(directory), part)
        monkeypatch.setattr(onnxruntime, "__version__", f"{oldest}.0")
        assert getattr(Graphs(directory), part).get_inputs()
    for said in ("newest", 3, None, {"text.onnx": [1]}, {"text.onnx": ">=x"}):
        assert older_than_stated("text.onnx", said, "1.11.1") is None


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_an_export_is_refused_before_a_byte_is_written(
    form: str, molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")
    plan = make_plan(read_checkpoint(molmo), Knobs(2, form=form))
    said: list[str] = []
    with pytest.raises(VerificationError, match=f"The {form} form needs {NEEDED}"):
        export_variant(plan, tmp_path / "out", say=said.append)
    assert said == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(VerificationError, match=NEEDED):
        check_operators(plan.form, plan.target.settings)


@pytest.mark.parametrize(
    ("made", "kind", "why"),
    [
        (node("QuickGelu", future=1), TensorProto.FLOAT, "Unrecognized attribute: future"),
        (node("QuickGelu", "xxx"), TensorProto.FLOAT, "input size 3 not in range"),
        (node("QuickGelu"), TensorProto.INT64, r"tensor\(int64\)"),
    ],
)
def test_an_operator_of_onnxruntimes_own_that_differs_is_named_with_the_reason(
    made: Any, kind: int, why: str, tmp_path: Path
) -> None:
    path = graph_file(tmp_path / "text.onnx", [made], kind)
    expected = rf"text\.onnx needs QuickGelu as of a newer onnxruntime, {HERE} has another one: .*{why}.*newer onnx"
    with pytest.raises(RunError, match=expected):
        open_session(path, {})


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (node("Relu", domain="", future=1), "Relu: Unrecognized attribute: future"),
        (node("Relu", "xx", domain=""), "Relu: Node with schema.* has input size 2"),
        (node("Concat", domain=""), "Concat: Required attribute 'axis' is missing"),
    ],
)
def test_a_damaged_graph_is_to_be_exported_again(made: Any, why: str, tmp_path: Path) -> None:
    path = graph_file(tmp_path / "text.onnx", [made], TensorProto.FLOAT)
    with pytest.raises(VerificationError, match=rf"could not load it: .*{why}.*Export the variant again"):
        open_session(path, {})


def test_a_later_standard_is_named(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "text.onnx", [node("Relu", domain="")], TensorProto.FLOAT, opset=99)
    with pytest.raises(RunError, match=rf"the Opset 99 of ONNX, which is newer than onnxruntime {HERE}\. Install"):
        open_session(path, {})


def test_the_reason_is_not_cut_off() -> None:
    long = SCHEMA.replace('"",)', '"v": tensor(float),' * 40 + ")")
    said = too_old_to_load("text.onnx", long, {"com.microsoft::QMoE"}, "CPU", "1.24.4")
    assert said is not None
    assert "input size 15 not in range [min=7, max=14]. Install a newer onnxruntime" in said
    assert "tensor" not in said
    assert "In Node n72, QMoE: Node(n72)" in shortened(long)
    assert shortened(long).endswith("not in range [min=7, max=14]")


@pytest.mark.parametrize("form", ["cpu", "cuda", "int4", "int8"])
def test_io_json_and_documentation_say_the_same(form: str, molmo: Path, tmp_path: Path) -> None:
    io = json.loads((write_variant(molmo, tmp_path / form, form=form) / "io.json").read_text())
    assert io["onnxruntime"] == f">={form_named(form).oldest}"
    (row,) = (line for line in (ROOT / "docs/forms.md").read_text().splitlines() if line.startswith(f"| `{form}`"))
    assert f"onnxruntime {form_named(form).oldest} or later" in row
    pages = (ROOT / "docs/runtimes.md").read_text()
    for graph, said in io["onnxruntime_by_graph"].items():
        (row,) = re.findall(rf"^\| `{re.escape(graph)}` \|.*$", pages, re.M)
        column = 2 + ["cpu", "int4", "int8", "cuda"].index(form)
        assert row.split("|")[column].strip() == said.removeprefix(">=")
    assert io["onnxruntime_by_graph"]["text.onnx"] == io["onnxruntime"]


def test_every_admitted_onnxruntime_runs_every_form() -> None:
    admitted = re.findall(r"onnxruntime(?:-gpu)?>=([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert len(admitted) == 3  # of two extras, one with a package per platform
    for form in FORMS:
        assert all(too_old_for(form, version) is None for version in admitted)
