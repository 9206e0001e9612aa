"""What travels beside the weights: everything that users need, nothing from elsewhere, nothing lost without a word."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import OlmoeConfig, OlmoeForCausalLM

from export.files.integrity import check_sums
from export.gate.verify import verify_directory
from export.run.answer import Runner
from export.run.session import RunError
from export.variant import export_variant
from transform.errors import CheckpointError
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import DEFAULT
from transform.tokenizer_file import check_tokenizer
from transform.write import write_checkpoint

Copy = Callable[[Path], Path]


@pytest.mark.parametrize(
    "name",
    ["LICENSE", "LICENSE.txt", "LICENSE.md", "license.txt", "LICENCE", "LICENSE.rst", "LICENSE-MIT", "COPYING",
     "NOTICE", "NOTICE.txt", "USE_POLICY.md", "Copyright.txt", "vocab.txt", "spiece.model", "tekken.json",
     "merges.txt"],
)  # fmt: skip
def test_licences_and_vocabularies_travel_by_any_usual_name(
    olmoe: Path, copy_of: Copy, tmp_path: Path, name: str
) -> None:
    copy = copy_of(olmoe)
    (copy / name).write_text("{}")
    (tmp_path / "v").mkdir()
    write_checkpoint(read_checkpoint(copy), tmp_path / "v")
    assert (tmp_path / "v" / name).read_text() == "{}"


@pytest.mark.parametrize("name", ["license.py", "LICENSE.safetensors", "notice.sh", "licensed.txt", "modeling.py"])
def test_code_and_data_stay_behind(olmoe: Path, copy_of: Copy, name: str) -> None:
    copy = copy_of(olmoe)
    (copy / name).touch()
    assert name not in read_checkpoint(copy).side_files


def test_templates_travel_in_their_folder_and_are_part_of_the_sums(olmoe: Path, copy_of: Copy, tmp_path: Path) -> None:
    copy = copy_of(olmoe)
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    export_variant(make_plan(read_checkpoint(copy), Knobs(2, (0, 2))), tmp_path / "v", onnx=False)
    written = tmp_path / "v" / "additional_chat_templates" / "tool_use.jinja"
    assert written.read_text() == "{{ messages }}"
    assert "additional_chat_templates/tool_use.jinja" in (tmp_path / "v" / "SHA256SUMS").read_text()
    assert verify_directory(tmp_path / "v", lambda _: None)["files"] == check_sums(tmp_path / "v")
    written.write_text("{{ other }}")
    with pytest.raises(Exception, match="it was changed"):
        check_sums(tmp_path / "v")


def pointer(path: Path) -> None:
    """As a clone without git-lfs has it."""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7000000\n")


def nowhere(path: Path) -> None:
    """As a cache whose blob is gone has it."""
    path.symlink_to("../../blobs/gone")


def outside(path: Path) -> None:
    """A private file's content would be published."""
    secret = path.parent.parent / "id_rsa"
    secret.write_text("secret")
    path.symlink_to(secret)


def loop(path: Path) -> None:
    """A link to itself."""
    path.symlink_to(path.name)


def fifo(path: Path) -> None:
    """A pipe that nobody writes to."""
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["tokenizer.json", "LICENSE", "chat_template.jinja", "generation_config.json"])
@pytest.mark.parametrize(
    ("make", "message"),
    [(pointer, "git lfs pull"), (nowhere, "a link to nothing"), (outside, "own directory"), (loop, "link|cannot be"),
     (fifo, "regular file")],
)  # fmt: skip
def test_what_is_there_but_can_not_be_taken_is_refused(
    olmoe: Path, copy_of: Copy, name: str, make: Callable[[Path], None], message: str
) -> None:
    copy = copy_of(olmoe)
    (copy / name).unlink(missing_ok=True)
    make(copy / name)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(copy)


def test_a_folder_of_templates_elsewhere_is_refused(olmoe: Path, copy_of: Copy, tmp_path: Path) -> None:
    copy = copy_of(olmoe)
    (tmp_path / "elsewhere").mkdir()
    (copy / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="own directory"):
        read_checkpoint(copy)


def test_links_inside_the_checkpoint_and_into_the_cache_are_followed(olmoe: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "01", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for at, file in enumerate(olmoe.iterdir()):
        shutil.copy(file, blobs / f"{at:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{at:064x}")
    (snapshot / "licenses").mkdir()
    (snapshot / "licenses" / "MIT").write_text("MIT")
    (snapshot / "LICENSE").symlink_to("licenses/MIT")
    assert {"LICENSE", "generation_config.json"} <= set(read_checkpoint(snapshot).side_files)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": "\\ud800"}', "[]", "", "{"])
def test_json_beside_the_tokenizer_is_read_strictly_before_anything_is_written(
    olmoe: Path, copy_of: Copy, name: str, text: str
) -> None:
    copy = copy_of(olmoe)
    (copy / name).write_text(text)
    with pytest.raises(CheckpointError, match=name):
        check_tokenizer(copy)


@pytest.mark.parametrize(("other", "words"), [(None, "can't use"), ("vocab.json", "vocab.json: save_pretrained")])
def test_a_source_without_tokenizer_json_is_warned_of_in_every_family(
    olmoe: Path, molmo: Path, copy_of: Copy, other: str | None, words: str
) -> None:
    for source in (olmoe, molmo):
        copy = copy_of(source)
        if other:
            (copy / other).write_text("{}")
        assert any(words in warning for warning in make_plan(read_checkpoint(copy), Knobs()).warnings)


def tokenizer(directory: Path, words: int) -> None:
    """A tokenizer of so many words, w0 to …"""
    made = Tokenizer(models.WordLevel({f"w{n}": n for n in range(words)}, unk_token="w1"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<|tool|>"])
    made.save(str(directory / "tokenizer.json"))


@pytest.mark.parametrize(("words", "warned"), [(127, False), (128, True), (200, True)])
def test_ids_beyond_the_embedding_are_warned_of_and_refused_in_prompts(
    olmoe: Path, copy_of: Copy, tmp_path: Path, words: int, warned: bool
) -> None:
    copy = copy_of(olmoe)
    tokenizer(copy, words)
    plan = make_plan(read_checkpoint(copy), Knobs(2, (0, 2)))
    assert any("embeddings for those below 128" in warning for warning in plan.warnings) is warned
    export_variant(plan, tmp_path / "v", verify=False)
    runner = Runner(tmp_path / "v")
    assert runner.answer(None, "w3 w126", 1).ids
    for prompt in ("w3 <|tool|>", f"w{words - 1}")[: 1 if words <= 128 else 2]:
        if warned:
            with pytest.raises(RunError, match="the model has 128 rows"):
                runner.prompt(prompt)
        else:
            runner.prompt(prompt)


def test_the_embedded_model_has_no_warnings_of_its_tokenizer() -> None:
    assert not [warning for warning in make_plan(read_checkpoint(DEFAULT), Knobs()).warnings if "token" in warning]


def test_a_padding_token_without_embedding_does_not_make_the_gate_fail(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=128, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_experts=8, num_experts_per_tok=4, max_position_embeddings=256, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    model = OlmoeForCausalLM(config)
    assert not model.get_input_embeddings().weight[0].any()
    model.save_pretrained(tmp_path / "source")
    manifest = export_variant(make_plan(read_checkpoint(tmp_path / "source"), Knobs(2)), tmp_path / "v")
    assert manifest["verification"]["onnx_vs_torch"]["padded"] < 1e-4
    assert json.loads((tmp_path / "v" / "manifest.json").read_text())["verification"] == manifest["verification"]
