"""Both environments on each other's variants: exported in one, proven, run and loaded in the other.

Run by `make test-versions`, which names this file: it needs `.venv-oldest` and `.venv-newest`. Commands run in a folder
outside the checkout.
"""

import json
import os
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version
from PIL import Image, ImageDraw

from tests.versions.environments import CUDA, DIRECTORIES, bounds, requirements
from tests.versions.noise import foreign_warnings

ANSWERS = Path(__file__).with_name("answers.py")
QUESTION = "What colour is the circle?"  # the first of answers.py
COUNT = 6
SETTING = ("--k", "4", "--blocks", "12", "--tokens", "432")
PAIRS = [(made, used) for made in DIRECTORIES for used in DIRECTORIES]


def installed(environment: str) -> dict[str, Version]:
    """Packages and versions of an environment, without local labels such as torch's `+cpu`."""
    (packages,) = (DIRECTORIES[environment] / "lib").glob("python3.*/site-packages")
    found = distributions(path=[str(packages)])
    return {canonicalize_name(one.name): Version(Version(one.version).public) for one in found}


class Workplace:
    """A folder with a picture, and a variant by each environment."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.picture = folder, folder / "picture.png"
        image = Image.new("RGB", (400, 300), "white")
        ImageDraw.Draw(image).ellipse((120, 80, 260, 220), fill="red")
        image.save(self.picture)

    def run(self, environment: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A program of an environment, which succeeds."""
        modules = self.folder / f"modules-{environment}"  # transformers copies a variant's code there
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [str(DIRECTORIES[environment] / "bin" / program), *arguments], cwd=self.folder, capture_output=True,
            text=True, env={**kept, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(modules)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    def answers(self, made: str, used: str) -> tuple[Any, list[str]]:
        """What answers.py says in `used` of the variant by `made`, and what it was warned of."""
        done = self.run(used, "python", str(ANSWERS), made, str(self.picture), str(COUNT))
        return json.loads(done.stdout), foreign_warnings(done.stderr)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    made = Workplace(tmp_path_factory.mktemp("versions"))
    for environment in DIRECTORIES:
        made.run(environment, "knobcast", "export", *SETTING, "--out", environment)
    return made


@pytest.fixture(scope="module")
def reference(place: Workplace) -> Any:
    """The answers in the oldest environment to its own variant."""
    return place.answers("oldest", "oldest")[0]


def test_the_oldest_environment_has_every_lower_bound() -> None:
    """A bound that no resolver can choose, because another package demands more, promises what nobody tried."""
    found = installed("oldest")
    declared = {canonicalize_name(r.name): Version(bounds(r)[0]) for r in requirements()}
    assert {name: found[name] for name in declared} == declared


def test_the_newest_environment_is_within_the_bounds() -> None:
    found = installed("newest")
    assert all(
        requirement.specifier.contains(found[canonicalize_name(requirement.name)]) for requirement in requirements()
    )
    assert found["transformers"] > installed("oldest")["transformers"]


@pytest.mark.parametrize("environment", DIRECTORIES)
def test_a_cpu_build_brings_no_cuda_packages(environment: str) -> None:
    pins = (DIRECTORIES[environment] / ".installed").read_text("utf-8").splitlines()
    assert any(pin.startswith("torch==") for pin in pins)
    if any(pin.startswith("torch==") and pin.endswith("+cpu") for pin in pins):
        assert not [pin for pin in pins if pin.startswith(CUDA)]


@pytest.mark.parametrize(("made", "used"), PAIRS)
def test_generate_equals_the_loop_without_a_cache_in_every_pair(
    place: Workplace, reference: Any, made: str, used: str
) -> None:
    found, warnings = place.answers(made, used)
    assert {name: len(answer["plain"]) for name, answer in found.items()} == {"text": 1, "picture": 1, "batch": 3}
    for name, answer in found.items():
        assert answer["generated"] == answer["plain"] == reference[name]["plain"], name
        assert answer["difference"] < 1e-3, name  # 1e-5 was seen, and 7 where the cache got lost
    assert not warnings


@pytest.mark.parametrize(("made", "used"), PAIRS)
def test_a_variant_is_verified_and_answers(place: Workplace, reference: Any, made: str, used: str) -> None:
    place.run(used, "knobcast", "verify", made)
    asked = ("--image", str(place.picture), "--prompt", QUESTION, "--max-new-tokens", str(COUNT), "--json")
    ids = json.loads(place.run(used, "knobcast", "run", made, *asked).stdout)["ids"]
    (expected,) = reference["picture"]["plain"]
    assert ids
    assert ids == expected[: len(ids)]


def test_both_environments_write_the_same_weights(place: Workplace) -> None:
    oldest, newest = ({file.name: file.read_bytes() for file in (place.folder / name).glob("*.safetensors")
                       if file.name.startswith("model")} for name in DIRECTORIES)  # fmt: skip
    assert oldest
    assert oldest == newest
