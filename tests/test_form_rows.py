"""A form is a row of a table: whoever needs to know something about it reads a field, and compares no name."""

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from export.gate.checking import checking_graphs, computed_by
from export.gate.op_checks import check_operators, missing_cuda
from export.numpy_run.graphs import NumpyGraphs
from export.run.providers import PROVIDERS
from export.variant import export_variant
from tests.support.imports import PACKAGES
from transform.errors import KnobError
from transform.forms import FORMS, NAMES, REFERENCE, form_named
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "transform" / "forms.py"
OURS = set(NAMES) - set(PROVIDERS)  # words that mean a form and nothing else


def comparisons(source: str) -> Iterator[int]:
    """Lines that compare with a form: by its name, unless a provider or device is compared, or with a row itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in OURS:
            yield node.lineno
        elif isinstance(node, ast.MatchValue) and words(node.value) & set(NAMES):
            yield node.value.lineno
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(about(side).endswith(("provider", "device")) for side in sides):
                continue
            if any(words(side) & set(NAMES) or about(side) == "REFERENCE" for side in sides):
                yield node.lineno


def words(side: ast.expr) -> set[object]:
    """A constant, or those of a tuple, list or set."""
    return {node.value for node in ast.walk(side) if isinstance(node, ast.Constant)}


def about(side: ast.expr) -> str:
    """The last name of `job["provider"]`, `self.provider`, `provider`."""
    if isinstance(side, ast.Subscript) and isinstance(side.slice, ast.Constant):
        return str(side.slice.value)
    return side.id if isinstance(side, ast.Name) else side.attr if isinstance(side, ast.Attribute) else ""


def test_no_file_compares_a_form() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path != TABLE]
    found = [f"{path.relative_to(ROOT)}:{line}" for path in files for line in comparisons(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        'if form == "cuda": pass',
        'x = 1 if "cpu" != io.get("form") else 2',
        'x = plan.form.name in ("cpu", "other")',
        "x = form is REFERENCE",
        'x = {"int4": 4}.get(form)',
        'match form:\n    case "cuda":\n        pass',
    ],
)
def test_a_comparison_would_be_seen(source: str) -> None:
    assert list(comparisons(source))


def test_a_form_is_said_by_whoever_calls() -> None:
    """A usual one would hide from a caller that there are others."""
    found = []
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.arguments):
                named = {about(default) for default in (*node.defaults, *node.kw_defaults) if default is not None}
                found += [str(path.relative_to(ROOT))] if "REFERENCE" in named else []
    assert found == []


@pytest.mark.parametrize(
    "source", ['job["provider"] != "cpu"', 'self.device == "cuda"', 'f(form="cpu")', "form.bits == 4"]
)
def test_providers_and_fields_may_be_compared(source: str) -> None:
    assert not list(comparisons(source))


def test_rows_are_whole() -> None:
    assert len(set(NAMES)) == len(FORMS)
    assert REFERENCE.runs_on_cpu
    for form in FORMS:
        assert set(form.providers) <= set(PROVIDERS)
        assert form.fused or not form.stacked
        assert (form.checked_by == "numpy") != form.runs_on_cpu
        assert form_named(form.name) is form


@pytest.mark.parametrize("word", ["CPU", "", 4, None, ["cpu"]])
def test_other_names_are_refused(word: object) -> None:
    with pytest.raises(KnobError, match="form must be one of cpu, cuda, int4, int8, got "):
        form_named(word)


def test_one_more_form_is_one_more_row(molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-precision experts one by one, for another provider: what no row has together."""
    row = replace(
        REFERENCE, name="half", compute="float16", stored="float16", providers=("tensorrt",), checked_by="numpy"
    )
    monkeypatch.setattr("transform.forms.FORMS", (*FORMS, row))
    monkeypatch.setattr("export.run.io_file.NAMES", (*NAMES, row.name))
    with pytest.raises(KnobError, match="the half form is float16"):
        Knobs(2, form="half", dtype="float32")
    plan = make_plan(read_checkpoint(molmo), Knobs(2, (0, 2), form="half"))
    assert (plan.form, plan.source_form, plan.dtype) == (row, REFERENCE, "float16")
    assert plan.name.endswith("-half")
    made = tmp_path / "made"
    export_variant(plan, made, verify=False)
    assert {tensor.stored for tensor in read_checkpoint(made).tensors.values()} == {"F16"}
    io = json.loads((made / "io.json").read_text())
    assert (io["form"], list(io["providers"])) == ("half", ["cpu", "tensorrt"])
    assert {value["dtype"] for value in io["graphs"]["text.onnx"]["inputs"]} == {"float16", "int64"}
    assert isinstance(checking_graphs(made), NumpyGraphs)
    assert computed_by(row).startswith("numpy")
    assert ("not_run" in check_operators(row, plan.target.settings)) == (missing_cuda() is not None)
    card = (made / "README.md").read_text()
    assert "as float16" in card
    assert "`half` form" in card
