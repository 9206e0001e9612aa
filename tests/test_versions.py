"""The declared ranges are what was tried; what is installed is compared by tests/versions/across.py."""

import re
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.versions.environments import (
    DIRECTORIES,
    ROOT,
    SMALL,
    bounds,
    extras_together,
    repeats,
    requirements,
    torch_pin,
)
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


def test_an_environment_repeats_the_main_one_only_with_its_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = {canonicalize_name(one.name): one.version for one in distributions()}
    monkeypatch.setitem(DIRECTORIES, "newest", tmp_path)

    def repeated() -> bool:
        (tmp_path / ".installed").write_text("\n".join(f"{name}=={version}" for name, version in pins.items()))
        return repeats("newest")

    assert repeated()
    pins[canonicalize_name("tokenizers")] = "0.0.1"
    assert not repeated()
