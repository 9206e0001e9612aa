"""`knobcast pack`: the archive is unpacked as its README says, without an index, and the variant answers there."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from export.run.answer import answer
from tests.support.command import knobcast
from tests.support.pictures import synthetic_image
from tests.support.variants import record_sums, write_variant
from transform.source import resolve


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_variant(resolve(None), tmp_path_factory.mktemp("pack") / "variant", (0, 5, 10), 4, tokens=432)
    record_sums(made)
    return made


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--platform", "win-amd64"), "--platform must be one of linux-x86_64, linux-aarch64, got 'win-amd64'"),
        (("--python", "3.10"), "--python must be 3.11 or later, got '3.10'"),
        (("--python", "3"), "--python must be 3.11 or later"),
        (("--platform", "linux-x86_64"), "exists; pass --force"),
    ],
)
def test_what_is_refused(variant: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    (tmp_path / "device.tar").write_text("mine")
    done = knobcast("pack", variant, "--out", tmp_path / "device.tar", *words)
    assert done.code == 1
    assert said in done.said
    assert (tmp_path / "device.tar").read_text() == "mine"


def test_a_changed_variant_is_not_packed(variant: Path, tmp_path: Path) -> None:
    made = tmp_path / "changed"
    made.mkdir()
    for file in variant.iterdir():
        (made / file.name).write_bytes(file.read_bytes() + b"\n" * (file.name == "README.md"))
    done = knobcast("pack", made, "--out", tmp_path / "device.tar", "--platform", "linux-x86_64")
    assert done.code == 1
    assert "README.md must have the digest in SHA256SUMS" in done.said
    assert not (tmp_path / "device.tar").exists()


def test_graphs_for_a_gpu_are_not_packed(molmo: Path, tmp_path: Path) -> None:
    made = write_variant(molmo, tmp_path / "cuda", form="cuda", dtype="float16")
    done = knobcast("pack", made, "--out", tmp_path / "device.tar", "--platform", "linux-x86_64")
    assert done.code == 1
    assert "the cuda form runs on a GPU" in done.said


@pytest.mark.extra
def test_the_readme_is_followed_without_an_index(variant: Path, tmp_path: Path) -> None:
    machine = f"linux-{os.uname().machine}"
    for name in ("device.tar", "again/device.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        done = knobcast("pack", variant, "--out", tmp_path / name, "--platform", machine, "--json")
        assert done.code == 0, done.err
    assert (tmp_path / "device.tar").read_bytes() == (tmp_path / "again/device.tar").read_bytes()
    wheels = json.loads(done.out)["wheels"]
    with tarfile.open(tmp_path / "device.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    device = tmp_path / "device"
    install, verify, run = (device / "README").read_text().splitlines()
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    base = Path(sys.base_exec_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    (bin_folder / base.name).symlink_to(base)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    env = kept | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PIP_CONFIG_FILE": os.devnull}

    def follow(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", line], cwd=device, capture_output=True, text=True, env=env)

    damaged = device / "wheels" / next(name for name in wheels if name.startswith("rich-"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole + b"\0")
    refused = follow(install)
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    damaged.write_bytes(whole)
    for line in (install, verify):
        done_there = follow(line)
        assert done_there.returncode == 0, done_there.stderr
    Image.fromarray(synthetic_image(400, 300, 0)).save(device / "photo.jpg")
    answered = follow(f"{run} --json")
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["ids"] == list(answer(variant, device / "photo.jpg", "What is this?").ids)
