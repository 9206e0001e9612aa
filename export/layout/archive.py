"""A variant and all that runs it in one archive: wheels for a named platform, their digests, three lines to begin with.

`--require-hashes` lets pip install nothing else; an index isn't needed there. The same wheels give the same bytes.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from export.files.check import check_files
from export.files.integrity import sha256_file
from export.run.io_file import form_in, read_io
from importance.atomic import write_atomically
from transform.errors import KnobError, WriteError
from transform.ownership import visible_files
from transform.progress import Say
from transform.scratch import scratch
from transform.strict_json import Record

PLATFORMS = {"linux-x86_64": "x86_64", "linux-aarch64": "aarch64"}
_GLIBC = range(28, 16, -1)  # 2.28 and the older ones, whose wheels it runs
_OLDEST_PYTHON = 11
_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "transform", "importance", "export")
_EPOCH = "315532800"  # 1980, the first time that a wheel can hold


@dataclass(frozen=True)
class Device:
    """What wheels are for."""

    platform: str
    python: str

    @classmethod
    def parse(cls, place: str | None, python: str | None) -> "Device":
        """Of PLATFORMS and 3.11 or later; None: this machine, this Python. Raises KnobError."""
        place = place or f"{platform.system().lower()}-{platform.machine()}"
        if place not in PLATFORMS:
            raise KnobError(f"--platform must be one of {', '.join(PLATFORMS)}, got {place[:40]!r}. Choose of these.")
        python = python or f"3.{sys.version_info.minor}"
        if not re.fullmatch(r"3\.[0-9]{1,2}", python) or int(python[2:]) < _OLDEST_PYTHON:
            raise KnobError(f"--python must be 3.{_OLDEST_PYTHON} or later, got {python[:40]!r}. Give the device's.")
        return cls(place, python)

    @property
    def pip(self) -> list[str]:
        """pip's options for its wheels."""
        tags = [f"manylinux_2_{minor}_{PLATFORMS[self.platform]}" for minor in _GLIBC]
        tags.append(f"manylinux2014_{PLATFORMS[self.platform]}")
        options = [word for tag in tags for word in ("--platform", tag)]
        return ["--only-binary=:all:", "--implementation", "cp", "--python-version", self.python, *options]


def pack_variant(
    directory: Path, out: Path, device: Device, *, force: bool = False, say: Say = lambda _: None
) -> Record:
    """Write the archive `out` and return what is in it; on any error `out` is as it was.

    Raises VerificationError for a directory that isn't what it records, KnobError where wheels can't be had.
    """
    if os.path.lexists(out) and not force:
        raise WriteError(f"{out} exists; pass --force to replace it or choose another --out.")
    io = read_io(directory)
    if (form := form_in(io)).usual_provider != "cpu":
        raise KnobError(
            f"an archive has onnxruntime for the CPU, and the {form.name} form runs on a GPU. Export the variant with "
            "--form cpu, int4 or int8."
        )
    check_files(directory, say)
    with scratch("pack") as folder:
        wheels = folder / "wheels"
        say("wheels")
        _collect(wheels, device)
        digests = {wheel.name: sha256_file(wheel) for wheel in sorted(wheels.iterdir())}
        texts = {"README": _readme(device, pictures="vision" in io), "requirements.txt": _requirements(digests)}
        places = {f"variant/{name}": directory / name for name in visible_files(directory)}
        places |= {f"wheels/{name}": wheels / name for name in digests}
        say("archive")
        write_atomically(out, lambda file: _write_tar(file, out.stem, texts, places), force)
    return {"platform": device.platform, "python": device.python, "wheels": digests, "bytes": out.stat().st_size}


def _collect(wheels: Path, device: Device) -> None:
    """knobcast's own wheel, and those that its extra [run] needs."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        raise KnobError(f"knobcast's wheel is built in its checkout, {root} is none. Run pack in a checkout.")
    with scratch("wheel") as copy:  # building leaves files beside the sources
        for name in _SOURCES:
            if (root / name).is_dir():
                shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(root / name, copy / name)
        _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(copy))
    (own,) = wheels.iterdir()
    _pip("download", "--dest", str(wheels), *device.pip, f"{own}[run]")


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"],
        capture_output=True, text=True, check=False, env=os.environ | {"SOURCE_DATE_EPOCH": _EPOCH},
    )  # fmt: skip
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:") or "No module named" in line]
        reason = said[-1][:300] if said else f"it ended with {done.returncode}"
        raise KnobError(
            f"pip {arguments[0]} must find every wheel: {reason}. "
            "Check the network and pip's configuration, or name another --platform or --python."
        )


def _requirements(digests: Mapping[str, str]) -> str:
    """Every wheel by name, version and digest."""
    parts = ((*name.split("-")[:2], digest) for name, digest in digests.items())
    return "".join(f"{name}=={version} --hash=sha256:{digest}\n" for name, version, digest in parts)


def _readme(device: Device, pictures: bool) -> str:
    image = " --image photo.jpg" if pictures else ""
    return (
        f"python{device.python} -m venv here && here/bin/pip install --no-index --find-links wheels --require-hashes "
        "-r requirements.txt\n"
        "here/bin/knobcast verify variant --level files\n"
        f'here/bin/knobcast run variant --prompt "What is this?"{image}\n'
    )


def _write_tar(file: BinaryIO, top: str, texts: Mapping[str, str], places: Mapping[str, Path]) -> None:
    """Sorted, without times and owners; links are followed."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, size, opened in _members(texts, places):
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = size
            with opened:
                archive.addfile(info, opened)


def _members(texts: Mapping[str, str], places: Mapping[str, Path]) -> Iterator[tuple[str, int, BinaryIO]]:
    for name, text in texts.items():
        yield name, len(text.encode()), BytesIO(text.encode())
    for name, path in sorted(places.items()):
        yield name, path.stat().st_size, path.open("rb")
