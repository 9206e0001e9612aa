"""The client in docs/clients/cpp answers, in ids, what `knobcast run` answers: compiled with the headers of a package,
linked with the library of the installed onnxruntime."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import onnxruntime
import pytest
from PIL import Image

from tests.support.clients import QUESTIONS, draw_pictures, embedded, run, unending
from tests.support.paths import ROOT

CLIENT = ROOT / "docs" / "clients" / "cpp"
HEADERS = ("onnxruntime_cxx_api.h", "nlohmann/json.hpp", "stb/stb_image.h")
COMPILER = ("g++", "-std=c++17", "-I/usr/include/onnxruntime")
LIBRARY = "libonnxruntime.so.1"


def missing() -> str:
    """What the compiler doesn't find; CPLUS_INCLUDE_PATH names further places."""
    if shutil.which("g++") is None:
        return "no g++"
    for header in HEADERS:
        command = [*COMPILER, "-E", "-x", "c++", "-include", header, "/dev/null"]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return f"no {header}: docs/clients/cpp/README.md names its package"
    return ""


MISSING = missing()
pytestmark = [pytest.mark.extra, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


class Place(NamedTuple):
    """The program, a variant of the embedded model."""

    program: Path
    variant: Path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("cpp")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob(f"{LIBRARY}.*")
    (home / LIBRARY).symlink_to(library)
    linked = (CLIENT / "answer.cpp", "-o", home / "answer", home / LIBRARY)
    command = [*COMPILER, "-O1", *map(str, linked), "-Wl,-rpath,$ORIGIN"]
    subprocess.run(command, check=True)
    return home / "answer"


@pytest.fixture(scope="module", params=["int4", "cpu"])
def place(program: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(program, embedded(tmp_path_factory.mktemp("variant") / "variant", request.param))


def answer(place: Place, variant: Path, ids: str, *words: object) -> subprocess.CompletedProcess[str]:
    file = place.program.with_name("question.ids")
    file.write_text(ids)
    command = [str(word) for word in (place.program, variant, file, *words, "--threads", 1)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def tokenized(variant: Path, question: str) -> str:
    """As the README makes them."""
    command = [sys.executable, str(CLIENT / "ids.py"), str(variant), question]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def text_of(variant: Path, ids: str) -> str:
    command = [sys.executable, str(CLIENT / "ids.py"), str(variant)]
    return subprocess.run(command, capture_output=True, text=True, check=True, input=ids).stdout


def test_its_ids_are_those_of_run(place: Place, tmp_path: Path) -> None:
    texts = set()
    for picture in (*draw_pictures(tmp_path), None):
        for question in QUESTIONS:
            theirs = run(place.variant, question, picture)
            ours = answer(place, place.variant, tokenized(place.variant, question), *([picture] if picture else []))
            assert ours.returncode == 0, ours.stderr
            assert [int(word) for word in ours.stdout.split()] == theirs.ids
            assert text_of(place.variant, ours.stdout) == theirs.text + "\n"
            texts.add(theirs.text)
    assert len(texts) > 3


def test_long_answers(place: Place, tmp_path: Path) -> None:
    """An end that never comes lets 24 tokens pass through the cache."""
    variant, picture = unending(place.variant, tmp_path / "unending"), draw_pictures(tmp_path)[0]
    theirs = run(variant, QUESTIONS[0], picture, 24).ids
    ours = answer(place, variant, tokenized(variant, QUESTIONS[0]), picture, "--max-new-tokens", 24)
    assert [int(word) for word in ours.stdout.split()] == theirs, ours.stderr
    assert len(theirs) == 24


def test_what_it_refuses(place: Place, tmp_path: Path) -> None:
    Image.new("RGB", (400, 1)).save(tmp_path / "thin.png")
    Image.new("I;16", (40, 30)).save(tmp_path / "deep.png")
    (tmp_path / "none.png").write_bytes(b"no picture")
    ids = tokenized(place.variant, QUESTIONS[0])
    for variant, given, words, told in (
        (place.variant, ids, (tmp_path / "thin.png",), "336 times the shorter one: .* has 400×1"),
        (place.variant, ids, (tmp_path / "deep.png",), "8 bits a colour: .* has 16"),
        (place.variant, ids, (tmp_path / "none.png",), "none.png: "),
        (place.variant, "1 two", (), "whole numbers"),
        (place.variant, "1 " * 5000, (), "one of 4096 positions, it has 5001"),
        (tmp_path, ids, (), "must have an intact io.json"),
    ):
        ours = answer(place, variant, given, *words)
        assert (ours.returncode, ours.stdout) == (1, "")
        assert re.search(told, ours.stderr), ours.stderr
        assert len(ours.stderr.splitlines()) == 1
