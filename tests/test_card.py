"""What a variant's card says, and that its program runs as it stands."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from export.variant import export_variant
from importance.scores import Scores, model_digest, write_scores
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import DEFAULT

ROOT = Path(__file__).parents[1]


def card(source: Path, knobs: Knobs, out: Path) -> str:
    export_variant(make_plan(read_checkpoint(source), knobs), out, onnx=False, verify=False, force=out.exists())
    return (out / "README.md").read_text()


def program(text: str) -> str:
    found = re.search(r"```python\n(.*?)```", text, re.S)
    assert found is not None
    return found[1]


def test_the_program_answers_about_a_picture(tmp_path: Path) -> None:
    """From another folder, by a Python that finds no knobcast: what a user copies out of the card."""
    variant, elsewhere = tmp_path / "v", tmp_path / "elsewhere"
    elsewhere.mkdir()
    text = program(card(DEFAULT, Knobs(4, tuple(range(12)), 432), variant))
    picture = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(picture).ellipse((60, 40, 200, 180), fill="red")
    picture.save(elsewhere / "photo.jpg")
    asked = text.replace('directory = "."', f"directory = {str(variant)!r}").replace(
        "is this?", "colour is the circle?"
    )
    assert asked.count("circle") == asked.count(str(variant)) == 1
    assert re.sub("directory = .*", "", text) == re.sub("directory = .*", "", program((ROOT / "README.md").read_text()))
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-P",
        "-c",
        f"import sys; sys.modules['transform'] = sys.modules['export'] = None\n{asked}",
    ]
    done = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "red"


def test_a_text_models_program_has_a_tokenizer_where_there_is_one(
    olmoe: Path, tmp_path: Path, copy_of: Callable[[Path], Path]
) -> None:
    bare = program(card(olmoe, Knobs(k=2), tmp_path / "v"))
    assert "AutoModelForCausalLM" in bare
    assert "generate" not in bare
    source = copy_of(olmoe)
    shutil.copy(DEFAULT / "tokenizer.json", source)
    full = program(card(source, Knobs(k=2), tmp_path / "v"))
    assert 'AutoTokenizer.from_pretrained(directory)\ninputs = tokenizer("What is this?"' in full
    assert "image" not in full.lower()
    compile(full, "card", "exec")


def test_equal_at_run_time_is_not_said_to_be_lossless(tmp_path: Path) -> None:
    text = card(DEFAULT, Knobs(4, tuple(range(12))), tmp_path / "v")
    scores = {block["index"]: block for block in json.loads((DEFAULT / "scores.json").read_text())["blocks"]}
    assert "isn't equal to the source" in text
    assert "knobcast evaluate . --data questions.jsonl" in text
    assert "653 samples, 0.914 with all blocks" in text
    assert f"| 13 | {scores[13]['score']:.3f} | {scores[13]['stderr']:.3f} |" in text
    assert "| 11 |" not in text  # it stays
    assert "accuracy drop" not in card(DEFAULT, Knobs(k=4), tmp_path / "v")  # no block was removed


def test_the_scores_that_chose_the_blocks_are_shown(olmoe: Path, tmp_path: Path) -> None:
    source, ranking = read_checkpoint(olmoe), Scores({0: 0.5, 1: 0.25, 2: 0.125}, "ppl", "nats", source="mine.json")
    plan = make_plan(source, Knobs(keep=(0, 1)))
    export_variant(plan, tmp_path / "v", onnx=False, verify=False, ranking=ranking)
    text = (tmp_path / "v" / "README.md").read_text()
    assert "chosen by mine.json: ppl (nats; samples not said)" in text
    assert "| 2 | 0.125 |  |" in text


@pytest.mark.parametrize("digest", ["another", None])
def test_scores_of_another_model_are_not_shown(
    olmoe: Path, tmp_path: Path, copy_of: Callable[[Path], Path], digest: str | None
) -> None:
    source = copy_of(olmoe)
    own = Scores(dict.fromkeys(range(6), 0.25), metric="drop", samples=7, model_digest=digest)
    write_scores(own, source / "scores.json")
    assert "0.250" not in card(source, Knobs(keep=(0, 1)), tmp_path / "v")
    checkpoint = read_checkpoint(source)
    write_scores(
        Scores(own.values, samples=7, model_digest=model_digest(checkpoint)), source / "scores.json", force=True
    )
    assert "| 5 | 0.250 |  |" in card(source, Knobs(keep=(0, 1)), tmp_path / "v")
