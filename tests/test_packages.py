"""The three generic package names are this checkout's, and the documented names are where they should be."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.imports import PACKAGES, circle, imports, modules, named, reached
from tests.support.paths import ROOT


@pytest.mark.parametrize("name", ["transform", "export", "importance"])
def test_a_generic_name_is_ours(name: str) -> None:
    found = import_module(name).__file__
    assert found is not None
    assert Path(found).parent == ROOT / name, f"{name!r} is shadowed by {found}"


@pytest.mark.parametrize(
    ("package", "names"),
    [
        (
            "transform",
            "set_moe_top_k BlockMaskWrapper tokens_to_crops crops_to_tiling tiling_to_resolution select_tiling "
            "resize_for_target_vision_tokens preprocess",
        ),
        (
            "importance",
            "select_top_k_blocks select_by_threshold select_sequential_blocks compute_accuracy_drop_importance "
            "compute_importance compute_activation_importance compute_gradient_importance compute_attention_importance",
        ),
    ],
)
def test_the_documented_names_are_there(package: str, names: str) -> None:
    module = import_module(package)
    for name in names.split():
        assert callable(getattr(module, name))


def test_the_packages_themselves_import_nothing_heavy() -> None:
    packages = (
        "transform, export, importance, export.command.main"  # and the command line, which every command waits for
    )
    script = f"import sys, {packages}; assert not {{'torch', 'numpy', 'onnx'}} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == 0


# Floor by floor: a room may import those before it, and no other. docs/design.md says what is in each.
FLOORS = [
    {"transform"},
    {"importance"},
    {"export.run", "export.cost"},
    {"export.graph", "export.files"},
    {"export.numpy_run"},
    {"export.gate", "export.layout", "export.publish"},
    {"export.variant", "export.derive", "export.bench"},
    {"export.family"},
    {"export.sweep"},
    {"export.report"},
    {"export.command"},
]
OURS = [name for name in modules() if name.split(".")[0] in PACKAGES]
HEAVY = {"torch", "transformers", "onnx", "onnxscript"}


def room_of(module: str) -> str:
    first, *rest = module.split(".")
    return ".".join([first, *rest[:1]]) if first == "export" else first


def test_every_room_imports_those_below_it_alone() -> None:
    floor = {room: n for n, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {room_of(name) for name in OURS} - {"export"}
    assert rooms == floor.keys(), "a new room gets a floor here and a row in docs/design.md"
    upwards = [
        f"{name} imports {other}"
        for name in OURS
        for other in imports(name)
        if room_of(name) != room_of(other) and "export" not in (name, other)
        if room_of(other) not in floor or floor[room_of(other)] >= floor[room_of(name)]
    ]
    assert upwards == []


def test_no_import_leads_back() -> None:
    """Imports inside functions count: one that hides a circle is a circle."""
    assert circle({name: imports(name) for name in OURS}) == []


def test_a_circle_would_be_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})[0] in "abc"


def test_no_package_imports_artifacts_or_tests() -> None:
    known = {name: imports(name) for name in OURS}
    foreign = {"artifacts", "tests"}
    assert [(name, other) for name in OURS for other in known[name] if other.split(".")[0] in foreign] == []


def test_no_module_imports_a_test() -> None:
    """What several tests need is in tests/support."""
    assert modules().keys() >= {"tests.support.variants", "tests.test_packages"}
    tests = {name for name in modules() if name.startswith("tests.test_")} | {"tests.conftest"}
    assert {name: sorted(tests & named(name)) for name in modules() if tests & named(name)} == {}


@pytest.mark.parametrize(
    ("starts", "at_import"),
    [
        ([name for name in OURS if room_of(name) == "export.run"], False),
        (["export.files.check", "export.bench.workload", "export.bench.engine_graphs", "export.bench.measure"], True),
        (["transform.plan", "transform.read", "importance.choose", "export.command.main", "export.graph.static"], True),
    ],
    ids=["the runner, whatever it does", "checking files and measuring graphs", "planning, until it runs a model"],
)
def test_no_torch_and_no_onnx(starts: list[str], at_import: bool) -> None:
    heavy = [
        f"{module} (reached from {by}) imports {name}"
        for module, (by, names) in reached(starts, at_import).items()
        for name in names
        if name.split(".")[0] in HEAVY
    ]
    assert heavy == []


def test_other_systems_are_told_at_once() -> None:
    code = "import os; os.name = 'nt'; import transform"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: knobcast needs a POSIX system, Linux or macOS, this is nt" in done.stderr.splitlines()[-1]


def test_what_one_system_alone_has_is_asked_for_first() -> None:
    """`os.preadv` and the like are Linux's; `fcntl` is every POSIX system's."""
    found = [
        f"{path.name}: {call}"
        for package in ("transform", "export", "importance")
        for path in (ROOT / package).rglob("*.py")
        for call in ("preadv", "pwritev")
        if f"os.{call}" in path.read_text()
    ]
    assert found == []
