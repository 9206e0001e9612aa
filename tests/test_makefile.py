"""The Makefile hands paths to the command as they were given, and installs what is missing."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import packaging
import pytest

ROOT = Path(__file__).parents[1]


def words(target: str, **variables: str) -> list[str]:
    """The command's words, as a shell splits what make would run."""
    given = [f"{name}={value}" for name, value in variables.items()]
    # under `make test` the inner make would say which directory it enters and leaves
    command = ["make", "--no-print-directory", "-n", target, *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return shlex.split(done.stdout[done.stdout.index(".venv/bin/knobcast") :].replace("\\\n", " "))


@pytest.mark.parametrize(
    "path", ["my models/x", "it's", 'a"b', "a;touch b", "x & y", "blanks (2)", "-dash", "a*b", "`id`"]
)
def test_paths_stay_whole(path: str) -> None:
    got = words("export", MODEL=path, OUT=path, SCORES=path, FAMILY="k=1,2 blocks=3")
    assert got[:3] == [".venv/bin/knobcast", "export", path]
    assert got[got.index("--out") + 1] == got[got.index("--scores") + 1] == path
    assert got[got.index("--family") + 1] == "k=1,2 blocks=3"
    got = words("score", MODEL=path, DATA=path, OUT=path)
    assert got[2] == got[got.index("--data") + 1] == got[got.index("--out") + 1] == path
    got = words("search", MODEL=path, DATA=path, STRATEGY="exact")
    assert (got[1], got[2], got[got.index("--data") + 1], got[-2:]) == ("search", path, path, ["--strategy", "exact"])
    got = words("sweep", MODEL=path, DATA=path, GRID="k=1,2 blocks=3", SWEEP=path)
    assert got[1:3] == ["sweep", path]
    assert got[got.index("--data") + 1] == got[got.index("--out") + 1] == path
    assert got[got.index("--grid") + 1] == "k=1,2 blocks=3"
    assert words("bench-variant", DIR=path)[2] == path
    assert words("push", DIR=path, TO=path, ALIAS=path)[1:] == ["push", path, path, "--alias", path]
    assert words("pull", FROM=path, OUT=path, FORCE="1")[1:] == ["pull", path, path, "--force"]


def test_a_pick_sweeps_chooses_and_reports() -> None:
    got = words("pick", LATENCY="0.5x", ACCURACY=">=0.95x")
    first = got.index("pick")
    assert got[:2] == [".venv/bin/knobcast", "sweep"]
    assert got[first:][:2] == ["pick", got[got.index("--out") + 1]]
    assert got[got.index("--latency-ms") + 1] == "0.5x"
    assert got[got.index("--accuracy") + 1] == ">=0.95x"
    assert got[got.index("report") + 1] == got[first + 1]


def test_the_home_folder_is_still_the_shells() -> None:
    done = subprocess.run(["make", "-n", "export", "MODEL=~/my models/x"], cwd=ROOT, capture_output=True, text=True)
    assert "export ~/'my models/x'" in done.stdout
    assert "--out" not in words("export")


LOG = "pip.log"
# Creating an environment and downloading 600 MB are left out; both leave what the real ones leave.
FAKE_PYTHON = f'#!/bin/sh\n[ "$1" = -m ] || exec {shlex.quote(sys.executable)} "$@"\n'
FAKE_PIP = f'#!/bin/sh\n[ "$1" = install ] || exit 0\necho "$@" >> {LOG}\n: > .venv/bin/knobcast\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make setup` looks at, installed a while ago."""
    (tmp_path / ".ci").mkdir()
    for name in ("Makefile", "pyproject.toml", ".ci/installed.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    program(tmp_path / "python", FAKE_PYTHON)
    program(tmp_path / ".venv/bin/pip", FAKE_PIP)
    program(tmp_path / ".venv/bin/knobcast", "")
    shutil.copytree(Path(packaging.__file__).parent, site(tmp_path) / "packaging")
    requires(tmp_path)
    (tmp_path / ".venv/.installed").touch()
    for path in (tmp_path / "pyproject.toml", site(tmp_path)):
        os.utime(path, (1e9, 1e9))
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def site(checkout: Path) -> Path:
    return next((checkout / ".venv/lib").glob("python*/site-packages"))


def requires(checkout: Path, *requirements: str) -> None:
    """The metadata of an installed knobcast."""
    home = site(checkout) / "knobcast-0.1.0.dist-info"
    home.mkdir(exist_ok=True)
    lines = ["Metadata-Version: 2.4", "Name: knobcast", "Version: 0.1.0", "Provides-Extra: dev"]
    (home / "METADATA").write_text("\n".join(lines + [f"Requires-Dist: {text}" for text in requirements]) + "\n")


def setup(checkout: Path) -> tuple[str, str]:
    """(what `make setup` printed, what pip was asked for)."""
    command = ["make", "setup", f"PYTHON={checkout / 'python'}"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    log = checkout / LOG
    return done.stdout + done.stderr, log.read_text() if log.exists() else ""


def test_what_is_installed_stays(checkout: Path) -> None:
    assert setup(checkout)[1] == ""
    os.utime(site(checkout))  # a package more
    assert setup(checkout)[1] == ""
    assert "Nothing to be done" in setup(checkout)[0]


def test_a_command_that_is_gone_comes_back(checkout: Path) -> None:
    (checkout / ".venv/bin/knobcast").unlink()
    printed, asked = setup(checkout)
    assert "missing: the command knobcast" in printed
    assert "Installing" in printed and "on disk" in printed
    assert asked.splitlines()[-1] == "install -q -e .[dev]"  # quiet: this is no terminal
    assert (checkout / ".venv/bin/knobcast").exists()
    assert "Nothing to be done" in setup(checkout)[0]


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("absent", "missing: absent"),
        ('absent>=2; extra == "dev"', "missing: absent>=2"),
        ("knobcast>=9", "missing: knobcast>=9 (there is 0.1.0)"),
    ],
)
def test_a_package_that_is_gone_comes_back(checkout: Path, requirement: str, said: str) -> None:
    requires(checkout, requirement)
    os.utime(site(checkout))
    printed, asked = setup(checkout)
    assert said in printed
    assert asked.endswith("install -q -e .[dev]\n")


def test_an_extra_that_nobody_asked_for_is_not_missing(checkout: Path) -> None:
    requires(checkout, 'absent; extra == "ray"')
    os.utime(site(checkout))
    assert setup(checkout)[1] == ""
