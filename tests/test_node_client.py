"""The client in docs/clients/node answers, without Python, what `knobcast run` answers."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image, ImageDraw

from tests.support.command import knobcast
from tests.support.models import save_source
from tests.support.paths import ROOT
from tests.support.variants import write_variant

CLIENT = ROOT / "docs" / "clients" / "node"
ENVIRONMENT = ROOT / ".venv-js"
NODE = shutil.which("node")
QUESTIONS = ("What colour is the circle?", "Where is the square?", "How many blue shapes are there?")
pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(NODE is None, reason="no node on the PATH: the client can't run"),
    pytest.mark.skipif(not (ENVIRONMENT / "node_modules").is_dir(), reason="no .venv-js: `make js-env` creates it"),
]


class Place(NamedTuple):
    """The client beside its modules, a variant of the embedded model, a picture."""

    client: Path
    variant: Path
    picture: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    home = tmp_path_factory.mktemp("client")
    shutil.copy(CLIENT / "answer.mjs", home)  # modules are looked for from where a file really lies
    (home / "node_modules").symlink_to(ENVIRONMENT / "node_modules")
    variant = write_variant(ROOT / "artifacts" / "molmoe-nano", home / "variant", k=4, tokens=432, form="int4")
    drawn = Image.new("RGB", (400, 300), "white")
    ImageDraw.Draw(drawn).ellipse((50, 60, 150, 160), fill="red")
    ImageDraw.Draw(drawn).rectangle((220, 120, 340, 240), fill="blue")
    drawn.save(home / "drawn.png")
    return Place(home / "answer.mjs", variant, home / "drawn.png")


def client(place: Place, variant: Path, question: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [str(NODE), place.client, variant, "--prompt", question, "--threads", "1", *words]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=120)


def answers(place: Place, variant: Path, *words: object) -> list[str]:
    """To all questions, with the picture and without, the client's, which are those of `knobcast run`."""
    found = []
    for question in QUESTIONS:
        for given in (("--image", place.picture), ()):
            ours = client(place, variant, question, *given, *words)
            theirs = knobcast("run", variant, "--prompt", question, "--threads", 1, "--json", *given, *words)
            assert ours.returncode == theirs.code == 0, ours.stderr + theirs.err
            assert ours.stdout == json.loads(theirs.out)["text"] + "\n"
            found.append(ours.stdout.strip())
    return found


def test_its_answers_are_those_of_run(place: Place) -> None:
    found = answers(place, place.variant)
    assert found[0] == "red"
    assert found[::2] != found[1::2]  # the picture matters


def ending(variant: Path, target: Path, ends: list[int]) -> Path:
    """A copy whose answers end at other ids."""
    shutil.copytree(variant, target)
    io = json.loads((target / "io.json").read_text())
    io["prompt"]["end"] = io["special_ids"]["eos"] = ends
    (target / "io.json").write_text(json.dumps(io))
    return target


def test_long_answers_and_empty_ones(place: Place, tmp_path: Path) -> None:
    """The embedded model answers in a word or two; an end that never comes lets 24 tokens pass through the cache."""
    rows = json.loads((place.variant / "io.json").read_text())["embedding_rows"]
    unending = ending(place.variant, tmp_path / "unending", [rows - 1])
    assert max(len(answer.split()) for answer in answers(place, unending, "--max-new-tokens", 24)) > 3
    silent = ending(place.variant, tmp_path / "silent", list(range(rows)))
    assert set(answers(place, silent)) == {""}


def test_what_it_refuses(place: Place, tmp_path: Path) -> None:
    Image.new("RGB", (400, 1)).save(tmp_path / "thin.png")
    (tmp_path / "none.png").write_bytes(b"no picture")
    save_source(tmp_path / "source")
    textual = write_variant(tmp_path / "source", tmp_path / "textual", k=2)
    for variant, question, words, told in (
        (place.variant, QUESTIONS[0], ("--image", tmp_path / "thin.png"), "336 times the shorter one: .* has 400×1"),
        (place.variant, QUESTIONS[0], ("--image", tmp_path / "none.png"), "none.png: .*format"),
        (place.variant, "What is <im_patch>?", (), "the image's own tokens, such as <im_patch>"),
        (place.variant, QUESTIONS[0], ("--max-new-tokens", 0), "from 1 on, got 0"),
        (textual, QUESTIONS[0], (), "must have preprocess.onnx"),
        (tmp_path, QUESTIONS[0], (), "must have an intact io.json"),
    ):
        ours = client(place, variant, question, *words)
        assert (ours.returncode, ours.stdout) == (1, "")
        assert re.search(told, ours.stderr), ours.stderr
        assert len(ours.stderr.splitlines()) == 1  # no trace


def test_it_is_tried_with_the_versions_that_it_asks_for() -> None:
    asked, tried = (
        json.loads((folder / "package.json").read_text())["dependencies"]
        for folder in (CLIENT, ROOT / "tests" / "transformersjs")
    )
    assert asked.items() <= tried.items()
