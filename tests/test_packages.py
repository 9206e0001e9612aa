"""The three generic package names are this checkout's, and the documented names are where they should be."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


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
    script = "import sys, transform, export, importance; assert not {'torch', 'numpy', 'onnx'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_importance_and_transform_know_nothing_of_export() -> None:
    for package in ("importance", "transform"):
        for file in (ROOT / package).rglob("*.py"):
            assert "from export" not in file.read_text(), file


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
