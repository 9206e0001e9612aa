"""An environment with the oldest or the newest of every declared dependency.

`python -m tests.versions.environments oldest|newest [--repeats]`, run by the Python of `.venv`. Its torch says which
build is wanted: what `make setup` chose for this machine, by pip's configuration or for want of an NVIDIA driver,
holds here too. uv resolves, for pip has no way to ask for the oldest.
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distributions, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from transform.strict_json import Record

ROOT = Path(__file__).parents[2]
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
DIRECTORIES = {name: ROOT / f".venv-{name}" for name in RESOLUTIONS}
SMALL = "run"  # the extra that is an install of its own (tests/test_small_install.py)
CUDA = ("nvidia-", "triton", "cuda-")  # packages that torch's CUDA build brings along


def requirements() -> list[Requirement]:
    """All that pyproject.toml declares for this machine, of the package and of its extras, without itself."""
    project = _project()
    extras = [text for name in extras_together() for text in project["optional-dependencies"][name]]
    found = [Requirement(text) for text in (*project["dependencies"], *extras)]
    return [r for r in found if r.name != project["name"] and (r.marker is None or r.marker.evaluate())]


def extras_together() -> list[str]:
    """All extras but SMALL, whose onnxruntime would overwrite that of `[full]`."""
    return [name for name in _project()["optional-dependencies"] if name != SMALL]


def _project() -> Record:
    project: Record = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project


def bounds(requirement: Requirement) -> tuple[str, str]:
    """The oldest version that it admits and the first one that it doesn't. Raises KeyError where one is open."""
    ends = {part.operator: part.version for part in requirement.specifier}
    return ends[">="], ends["<"]


def torch_pin(name: str, installed: str) -> str:
    """The torch of an environment: the build (`+cpu` or none) of the installed one; its version, or the oldest."""
    if name == "newest":
        return f"torch=={installed}"
    _, plus, build = installed.partition("+")
    (torch,) = (r for r in requirements() if r.name == "torch")
    return f"torch=={bounds(torch)[0]}{plus}{build}"


def sources(installed: str) -> list[str]:
    """uv's options for where packages are: pip's, which uv doesn't read, or else the CPU build's own index."""
    links = _pip("find-links")
    options = [argument for place in links for argument in ("--find-links", place)]
    options += [argument for place in _pip("index-url")[:1] for argument in ("--default-index", place)]
    return options if options or not installed.endswith("+cpu") else ["--torch-backend", "cpu"]


def make(name: str) -> None:
    """Resolve, then install into `.venv-NAME`, whose stamp appears last.

    Raises SystemExit when packages for CUDA would come with a CPU build.
    """
    installed, directory = version("torch"), DIRECTORIES[name]
    options = sources(installed)
    with tempfile.TemporaryDirectory() as scratch:
        pins, override = Path(scratch, "pins.txt"), Path(scratch, "torch.txt")
        override.write_text(torch_pin(name, installed) + "\n", "utf-8")
        extras = [word for extra in extras_together() for word in ("--extra", extra)]
        _uv("pip", "compile", "pyproject.toml", *extras, "--resolution", RESOLUTIONS[name], "--python",
            sys.executable, "--override", str(override), "--no-header", "--no-annotate", "-o", str(pins),
            *options)  # fmt: skip
        found = [line for line in pins.read_text("utf-8").splitlines() if line.startswith(CUDA)]
        if found and installed.endswith("+cpu"):
            raise SystemExit(
                f"a CPU build of torch needs no package for CUDA, found: {', '.join(found)}. Run make setup."
            )
        _uv("venv", "--clear", "--python", sys.executable, str(directory))
        python = str(directory / "bin" / "python")
        _uv("pip", "install", "--python", python, "--no-deps", "-r", str(pins), *options)
        _uv("pip", "install", "--python", python, "--no-deps", "-e", str(ROOT))
        (directory / ".installed").write_text(pins.read_text("utf-8"), "utf-8")


def repeats(name: str) -> bool:
    """Whether what is declared and installed in `.venv`, whose tests `make test` runs, has the same versions there."""
    pins = [Requirement(line) for line in (DIRECTORIES[name] / ".installed").read_text("utf-8").splitlines()]
    declared = {canonicalize_name(r.name) for r in requirements()}
    found = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    return all(
        found[name] == one.version for one in distributions() if (name := canonicalize_name(one.name)) in declared
    )


def _uv(*arguments: str) -> None:
    subprocess.run([str(Path(sys.executable).with_name("uv")), *arguments, "--quiet"], cwd=ROOT, check=True)


def _pip(option: str) -> list[str]:
    """What pip is configured to use, by its files or by the environment; the latter wins, as it does for pip."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    values = dict(line.split("=", 1) for line in listed.stdout.splitlines() if "=" in line)
    for section in (":env:", "install", "global"):
        if value := values.get(f"{section}.{option}"):
            return value.strip("'\"").split()
    return []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RESOLUTIONS)
    parser.add_argument("--repeats", action="store_true", help="make nothing; exit 0 if it is what .venv is, else 1")
    given = parser.parse_args()
    if given.repeats:
        sys.exit(not repeats(given.name))
    make(given.name)
