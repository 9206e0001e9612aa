"""The declared ranges are what was tried; what is installed is compared by tests/versions/across.py."""

import re

import pytest
from packaging.requirements import Requirement

from tests.versions.environments import DIRECTORIES, ROOT, SMALL, bounds, extras_together, requirements, torch_pin
from transform.molmoe.versions import TESTED_TRANSFORMERS

DECLARED = requirements()


def named(name: str) -> Requirement:
    (found,) = (requirement for requirement in DECLARED if requirement.name == name)
    return found


def test_transformers_range_is_the_one_that_travels() -> None:
    oldest, newest = TESTED_TRANSFORMERS
    major, minor = map(int, newest.split("."))
    assert bounds(named("transformers")) == (oldest, f"{major}.{minor + 1}")


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda requirement: requirement.name)
def test_every_range_has_two_ends(requirement: Requirement) -> None:
    lower, upper = bounds(requirement)
    assert requirement.specifier.contains(lower)
    assert not requirement.specifier.contains(upper)


@pytest.mark.parametrize("file", ["Makefile", "tests/gpu/environment.py"])
def test_torch_has_the_same_range_everywhere(file: str) -> None:
    written = re.findall(r"\btorch>=[\d.]+,<[\d.]+", (ROOT / file).read_text("utf-8"))
    assert written == ["torch>={},<{}".format(*bounds(named("torch")))]


def test_torchs_build_is_the_installed_one() -> None:
    oldest, _ = bounds(named("torch"))
    assert torch_pin("newest", "2.13.9+cpu") == "torch==2.13.9+cpu"
    assert torch_pin("oldest", "2.13.9+cpu") == f"torch=={oldest}+cpu"
    assert torch_pin("oldest", "2.13.9") == f"torch=={oldest}"


def test_environments_are_removed_and_not_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text("utf-8").split()
    clean = (ROOT / "Makefile").read_text("utf-8").partition("\nclean:")[2]
    for directory in DIRECTORIES.values():
        assert f"{directory.name}/" in ignored
        assert directory.name in clean


def test_one_environment_has_one_onnxruntime() -> None:
    """The CPU's and the GPU's packages own the same files: the one installed last would win."""
    assert SMALL not in extras_together()
    assert len([name for name in (r.name for r in DECLARED) if name.startswith("onnxruntime")]) == 1
