"""The client in docs/clients/genai answers, without knobcast, what `knobcast run` answers."""

import re
import subprocess
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from tests.support.clients import QUESTIONS, draw_pictures, embedded, run, unending
from tests.support.models import save_source
from tests.support.paths import ROOT
from tests.support.variants import write_variant

CLIENT = ROOT / "docs" / "clients" / "genai" / "answer.py"
PYTHON = ROOT / ".venv-genai" / "bin" / "python"
pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-genai: `make genai-env` creates it"),
]


@pytest.fixture(scope="module", params=["int4", "cpu"])
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded(tmp_path_factory.mktemp("genai") / "variant", request.param)


def client(variant: Path, question: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [PYTHON, CLIENT, variant, "--prompt", question, "--threads", "1", *words]
    given = [str(word) for word in command]
    return subprocess.run(given, capture_output=True, text=True, check=False, timeout=120, cwd=variant)


def answers(variant: Path, pictures: Iterable[Path | None], most: int) -> list[str]:
    """To all questions, the client's, which are those of `knobcast run`."""
    found = []
    for picture, question in product(pictures, QUESTIONS):
        given = () if picture is None else ("--image", picture)
        ours = client(variant, question, "--max-new-tokens", most, *given)
        assert ours.returncode == 0, ours.stderr
        assert ours.stdout == run(variant, question, picture, most).text + "\n"
        found.append(ours.stdout.strip())
    return found


def test_its_answers_are_those_of_run(variant: Path, tmp_path: Path) -> None:
    found = answers(variant, (*draw_pictures(tmp_path), None), 64)
    assert found[0] == "red"
    assert len({tuple(found[at : at + 3]) for at in range(0, 12, 3)}) > 2  # the picture matters


def test_long_answers(variant: Path, tmp_path: Path) -> None:
    """An end that never comes lets 24 tokens pass through the cache."""
    found = answers(unending(variant, tmp_path / "unending"), (draw_pictures(tmp_path)[0], None), 24)
    assert max(len(answer.split()) for answer in found) > 3


def test_what_it_refuses(variant: Path, tmp_path: Path) -> None:
    Image.new("RGB", (400, 1)).save(tmp_path / "thin.png")
    Image.new("I;16", (40, 30)).save(tmp_path / "deep.png")
    (tmp_path / "none.png").write_bytes(b"no picture")
    save_source(tmp_path / "source")
    textual = write_variant(tmp_path / "source", tmp_path / "textual", k=2)
    for directory, question, words, told in (
        (variant, QUESTIONS[0], ("--image", tmp_path / "thin.png"), "336 times the shorter one: .* has 400×1"),
        (variant, QUESTIONS[0], ("--image", tmp_path / "deep.png"), "8 bits a colour: .*I;16"),
        (variant, QUESTIONS[0], ("--image", tmp_path / "none.png"), "none.png: .*image file"),
        (variant, "What is <im_patch>?", (), "the image's own tokens, such as <im_patch>"),
        (variant, QUESTIONS[0], ("--max-new-tokens", 0), "from 1 on, got 0"),
        (textual, QUESTIONS[0], (), "must have preprocess.onnx"),
        (tmp_path, QUESTIONS[0], (), "must have an intact io.json"),
    ):
        ours = client(directory, question, *words)
        assert (ours.returncode, ours.stdout) == (1, "")
        assert re.search(told, ours.stderr), ours.stderr
        assert len(ours.stderr.splitlines()) == 1  # no trace
