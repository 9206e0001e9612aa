"""The commands as a user types them: what transformers, torch or onnxruntime warn of doesn't reach the terminal."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.versions.noise import foreign_warnings

ROOT = Path(__file__).parents[2]
Command = Callable[..., None]
BLOCKS = ("--keep-blocks", "0,5,10,15")

COMMANDS = {
    "plan": ("plan", "--k", "4", "--tokens", "288"),
    "verify": ("verify", "variant"),
    "run": ("run", "variant", "--image", "p.png", "--prompt", "Why?"),
    "score": ("score", "variant", "--data", "d.jsonl", "--metric", "nll", "--out", "nll.json"),
    "score, generated": ("score", "--data", "d.jsonl", "--limit", "1", "--tokens", "288", "--out", "accuracy.json"),
    "score, streamed": ("score", "variant", "--data", "d.jsonl", "--metric", "kl", "--stream", "--out", "kl.json"),
    "evaluate": ("evaluate", "variant", "--data", "d.jsonl", "--limit", "1"),
    "bench": ("bench", "variant", "--against", "eager", "--runs", "1", "--warmup", "0", "--new-tokens", "4"),
    "family": ("export", "--family", "k=2,4 blocks=2", "--tokens", "288", "--out", "family"),
    "int4": ("export", "--k", "2", *BLOCKS, "--form", "int4", "--tokens", "288", "--out", "int4"),
}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs a command in a process of its own, in a folder with a variant, a picture and samples."""
    folder = tmp_path_factory.mktemp("quiet")
    image = Image.new("RGB", (400, 300), "white")
    ImageDraw.Draw(image).ellipse((120, 80, 260, 220), fill="red")
    image.save(folder / "p.png")
    prompts = ("What colour is the circle?", "Why?")
    rows = [{"id": str(i), "image": "p.png", "prompt": p, "answers": ["red"]} for i, p in enumerate(prompts)]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(*arguments: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
        done = subprocess.run(
            [sys.executable, "-m", "export.command.main", *arguments], cwd=folder, capture_output=True, text=True,
            env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert foreign_warnings(done.stderr) == []

    run("export", "--k", "4", *BLOCKS, "--tokens", "288", "--out", "variant")
    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_no_library_warns(command: Command, name: str) -> None:
    command(*COMMANDS[name])


def test_what_counts_as_a_librarys_warning() -> None:
    ours = "warning: 3 blocks have no score\n… weights\nerror: the file is damaged"
    theirs = [
        "/usr/lib/x.py:3: FutureWarning: `a` is deprecated",
        "[transformers] `a` is deprecated. Use `b` instead.",
        "2026-01-01 00:00:00 [W:onnxruntime:, graph.cc:1] Removing initializer",
    ]
    assert foreign_warnings("\n".join([ours, *theirs])) == theirs
