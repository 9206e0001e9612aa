"""The client in docs/clients/node answers, without Python, what `knobcast run` answers."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from tests.support.clients import QUESTIONS, draw_pictures, embedded, ending, run, unending
from tests.support.models import save_source
from tests.support.paths import ROOT
from tests.support.variants import read_json, write_variant

CLIENT = ROOT / "docs" / "clients" / "node"
ENVIRONMENT = ROOT / ".venv-js"
NODE = shutil.which("node")
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
    return Place(home / "answer.mjs", embedded(home / "variant", "int4"), draw_pictures(home)[0])


def client(place: Place, variant: Path, question: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [str(NODE), place.client, variant, "--prompt", question, "--threads", "1", *words]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=120)


def answers(place: Place, variant: Path, most: int = 64) -> list[str]:
    """To all questions, with the picture and without, the client's, which are those of `knobcast run`."""
    found = []
    for question in QUESTIONS:
        for picture in (place.picture, None):
            given = () if picture is None else ("--image", picture)
            ours = client(place, variant, question, "--max-new-tokens", most, *given)
            assert ours.returncode == 0, ours.stderr
            assert ours.stdout == run(variant, question, picture, most).text + "\n"
            found.append(ours.stdout.strip())
    return found


def test_its_answers_are_those_of_run(place: Place) -> None:
    found = answers(place, place.variant)
    assert found[0] == "red"
    assert found[::2] != found[1::2]  # the picture matters


def test_long_answers_and_empty_ones(place: Place, tmp_path: Path) -> None:
    """The embedded model answers in a word or two; an end that never comes lets 24 tokens pass through the cache."""
    longest = answers(place, unending(place.variant, tmp_path / "unending"), 24)
    assert max(len(answer.split()) for answer in longest) > 3
    rows = read_json(place.variant / "io.json")["embedding_rows"]
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
