"""The default form in onnxruntimes of several years, by graphs and golden file alone; the oldest one of int4.

Each of the first lies in an environment of its own. The others are onnxruntime alone, put before the one that is
installed, so that knobcast's own command line meets them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from export.gate.image_probe import image_probe
from export.variant import export_variant
from tests.support.paths import PROGRAMS, ROOT
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import DEFAULT

HOME = ROOT / ".venv-ort"
TOLERANCE = 1e-5  # of the largest value, as in the gate
pytestmark = pytest.mark.extra


def there(version: str) -> Any:
    missing = not (HOME / version / ".installed").exists()
    return pytest.param(version, marks=pytest.mark.skipif(missing, reason="`make ort-envs` creates .venv-ort"))


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded model in bfloat16 with 4 experts per token and 12 blocks, in two forms."""
    root = tmp_path_factory.mktemp("old")
    for form in ("cpu", "int4"):
        plan = make_plan(read_checkpoint(ROOT / DEFAULT), Knobs(4, keep=tuple(range(12)), tokens=432, form=form))
        export_variant(plan, root / form)
    return {form: root / form for form in ("cpu", "int4")}


def golden(python: Path, directory: Path, picture: Path) -> dict[str, Any]:
    command = [str(python), str(PROGRAMS / "ort_golden.py"), str(directory), str(picture)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def draw(directory: Path, path: Path) -> Path:
    """The golden picture, cut by the variant's policy."""
    manifest = json.loads((directory / "manifest.json").read_text())
    seed = manifest["verification"]["probe_seed"]
    probe = image_probe(read_checkpoint(directory), directory, manifest["vision"], seed)
    arrays = {"images": probe.images[0], "image_masks": probe.image_masks[0], "feature_index": probe.feature_index}
    save_file({name: array.copy() for name, array in arrays.items()}, path)
    return path


@pytest.mark.parametrize("version", [there("1.17.3"), there("1.20.1"), there("1.22.1"), there("newest")])
def test_golden_outputs_of_the_default_form(version: str, variants: dict[str, Path], tmp_path: Path) -> None:
    directory = variants["cpu"]
    found = golden(HOME / version / "bin" / "python", directory, draw(directory, tmp_path / "picture.safetensors"))
    assert version in ("newest", found["onnxruntime"])
    assert found["numpy"].startswith("1." if version == "1.17.3" else "2.")
    for settings in ("io.json", "plain"):
        assert found[settings]["logits"] <= TOLERANCE
        assert found[settings]["image.embeddings"] <= TOLERANCE
        assert found[settings]["image.first_choice"] == 0


def knobcast(version: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line, with that onnxruntime in place of the installed one."""
    command = [sys.executable, "-c", "from export.command.main import main; main()", *words]
    environment = {**os.environ, "PYTHONPATH": str(HOME / version), "COLUMNS": "400"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


@pytest.mark.parametrize("version", [there("1.24.4")])
def test_int4_is_refused_by_the_version_before(version: str, variants: dict[str, Path], tmp_path: Path) -> None:
    needed = (
        f"needs QMoE as of onnxruntime 1.25, this is {version}. Install onnxruntime 1.25 or later, or export with "
        "--form cpu."
    )
    ran = knobcast(version, "run", str(variants["int4"]), "--prompt", "hi")
    assert ran.returncode != 0
    assert f"text.onnx {needed}" in ran.stderr
    exported = knobcast(version, "export", str(ROOT / DEFAULT), "--k", "4", "--form", "int4", "--out", f"{tmp_path}/v")
    assert exported.returncode != 0
    assert f"The int4 form {needed}" in exported.stderr
    assert not (tmp_path / "v").exists()
    assert knobcast(version, "run", str(variants["cpu"]), "--prompt", "hi").returncode == 0


@pytest.mark.parametrize("version", [there("1.25.0")])
def test_int4_is_verified_by_the_oldest_version_that_is_admitted(version: str, variants: dict[str, Path]) -> None:
    checked = knobcast(version, "verify", str(variants["int4"]), "--json")
    assert checked.returncode == 0, checked.stderr
    ran = knobcast(version, "run", str(variants["int4"]), "--prompt", "hi", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["ids"]
