"""What a variant's card says, and that its program runs as it stands."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image, ImageDraw

from export.files.card_metadata import front_matter
from export.files.card_use import use_lines
from export.files.measured import Data, Drop, Measured, Quality, Share
from export.files.source_card import SourceCard, read_source_card
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


def hub_card(directory: Path) -> ModelCard:
    """As the hub's own client reads it; raises where it couldn't be."""
    return ModelCard((directory / "README.md").read_text())


def test_the_hubs_client_reads_the_metadata(olmoe: Path, tmp_path: Path, copy_of: Callable[[Path], Path]) -> None:
    source = copy_of(olmoe)
    (source / "README.md").write_text('---\nlicense: "apache-2.0"  # as it was\nbase_model: owner/first\n---\n')
    card(source, Knobs(2, (0, 3)), tmp_path / "v")
    found = hub_card(tmp_path / "v").data
    assert (found.license, found.library_name, found.pipeline_tag) == ("apache-2.0", "transformers", "text-generation")
    assert (found.base_model, found.base_model_relation) == ("owner/first", "finetune")
    assert found.tags == ["knobcast", "olmoe", "mixture-of-experts", "pruned"]
    card(tmp_path / "v", Knobs(1), tmp_path / "again")  # a variant's variant keeps licence and origin
    assert hub_card(tmp_path / "again").data.to_dict() == found.to_dict() | {"tags": found.tags[:3]}
    assert "by its card: `apache-2.0`" in (tmp_path / "again" / "README.md").read_text()


def test_a_snapshot_of_the_hub_is_the_base_model(olmoe: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(olmoe, snapshot)
    (snapshot / "README.md").write_text("---\nbase_model: owner/first\n---\n")
    plan = make_plan(read_checkpoint(snapshot), Knobs(form="int4"))
    found = ModelCardData(**yaml(front_matter(plan, True, None, read_source_card(snapshot))))
    assert (found.base_model, found.base_model_relation, found.library_name) == ("owner/tiny", "quantized", "onnx")
    assert found.tags == ["knobcast", "olmoe", "mixture-of-experts", "int4"]
    assert found.license is None


def yaml(lines: list[str]) -> dict[str, Any]:
    return dict(ModelCard("\n".join(lines)).data.to_dict())


MEASURED = Measured(
    Data('questions: "mine"\x7f', "ab" * 32, 12, 4, "vqa"),
    Quality(
        Share(0.75, 0.125, (0.5, 0.9), 12), {"colour": Share(1.0, None, None, 6), "no": Share(0.5, 0.2, (0.1, 0.9), 6)},
        Drop(0.0, 0.0, None),
    ),
    None, {}, {}, None,
)  # fmt: skip


def test_what_was_measured_is_the_hubs_model_index(olmoe: Path, tmp_path: Path) -> None:
    plan = make_plan(read_checkpoint(olmoe), Knobs(2, (0, 3)))
    export_variant(plan, tmp_path / "v", onnx=False, verify=False, measured=MEASURED)
    data = hub_card(tmp_path / "v").data
    assert data.model_name == plan.name
    first, second, third = data.eval_results
    assert (first.task_type, first.metric_type, first.metric_value) == ("text-generation", "accuracy", 0.75)
    assert first.metric_args == {"samples": 12, "stderr": 0.125, "interval_95": [0.5, 0.9]}
    assert (first.dataset_type, first.dataset_name) == ("questions-mine", 'questions: "mine"')
    assert first.dataset_args == {"sha256": "ab" * 32, "samples": 12}
    assert (second.metric_name, second.metric_args) == ("accuracy, colour", {"samples": 6})
    assert (third.metric_name, third.metric_value) == ("accuracy, no", 0.5)


@pytest.mark.parametrize(
    ("said", "license"),
    [
        ("---\nlicense: mit\n---\n", "mit"), ("---\r\nlicense: mit\r\n---\r\n", "mit"), ("license: mit\n", None),
        ("---\nlicense: mit\n", None), ("", None), ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\nlicense: 'mit'\nlicense: other\n---\n", "mit"), ("---\nlicense: mit | rm `x`\n---\n", None),
        ("---\ntext: |\n  license: mit\n---\n", None), ("---\nlicense: " + "a" * 200 + "\n---\n", None),
        ("\ufeff---\nlicense: mit\n---\n", None), ("---\n" + "x: y\n" * 600 + "license: mit\n---\n", None),
    ],
)  # fmt: skip
def test_a_licence_is_a_plain_word_of_the_metadata(tmp_path: Path, said: str, license: str | None) -> None:
    (tmp_path / "README.md").write_bytes(said.encode())
    assert read_source_card(tmp_path).license == license


def test_a_card_that_cannot_be_read_states_nothing(tmp_path: Path) -> None:
    assert read_source_card(tmp_path) == SourceCard()
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert read_source_card(tmp_path) == SourceCard()
    (tmp_path / "README.md").unlink()
    os.mkfifo(tmp_path / "README.md")
    assert read_source_card(tmp_path) == SourceCard()


def test_the_licence_of_the_source_is_said_or_that_it_isnt(
    olmoe: Path, tmp_path: Path, copy_of: Callable[[Path], Path]
) -> None:
    assert "not stated in its card" in card(olmoe, Knobs(2), tmp_path / "v")
    source = copy_of(olmoe)
    link = "https://example.org/licence"
    (source / "README.md").write_text(f"---\nlicense: other\nlicense_name: ours\nlicense_link: {link}\n---\n")
    (source / "LICENSE.txt").write_text("ours")
    text = card(source, Knobs(2), tmp_path / "v")
    assert f"`other` (ours), {link}" in text
    assert "`LICENSE.txt`" in text
    data = hub_card(tmp_path / "v").data
    assert (data.license, data.license_name, data.license_link) == ("other", "ours", link)


@pytest.mark.parametrize(
    ("form", "sees", "said", "unsaid"),
    [
        (
            "cpu",
            False,
            ["import onnxruntime_genai", "AutoModelForCausalLM", "huggingface/tr", "knobcast run ."],
            ["image"],
        ),
        ("int4", False, ["import onnxruntime_genai", "huggingface/transformers", "knobcast run ."], ["import AutoM"]),
        ("cuda", False, ["AutoModelForCausalLM", "--provider cuda"], ["genai", "huggingface"]),
        (
            "cpu",
            True,
            ["answer.py . --image", "answer.mjs . --image", "AutoModelForImageTextToText"],
            ["huggingface/tr"],
        ),
    ],
)
def test_the_runtimes_that_run_it_are_named(
    olmoe: Path, tmp_path: Path, form: str, sees: bool, said: list[str], unsaid: list[str]
) -> None:
    plan = make_plan(read_checkpoint(DEFAULT if sees else olmoe), Knobs(2, form=form))
    shutil.copy(DEFAULT / "tokenizer.json", tmp_path)
    text = "\n".join(use_lines(plan, tmp_path, True))
    assert [words for words in said if words not in text] == []
    assert [words for words in unsaid if words in text] == []


def test_what_is_saved_is_a_part_of_what_there_was(olmoe: Path, tmp_path: Path) -> None:
    assert "| blocks | 6 | 3 (removed: 1, 3, 4) | 50.0 % |" in card(olmoe, Knobs(keep=(0, 2, 5)), tmp_path / "v")
