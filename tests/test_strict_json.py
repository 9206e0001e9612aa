"""JSON of other people: what has two meanings, no end or no way back to a file is refused by every reader."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from export.files.integrity import check_sums, sha256_file
from export.run.graph_facts import read_facts
from importance.scores import read_scores
from tests.support.safetensors_file import write_raw
from transform.errors import CheckpointError, ScoresError, VerificationError
from transform.molmoe.pictures import ImageError, open_image
from transform.read import read_checkpoint
from transform.safetensors_header import MAX_TENSORS, read_header
from transform.special_tokens import check_special_tokens
from transform.strict_json import MAX_JSON_BYTES, parse, read_json
from transform.vision_tower import read_tower

Copy = Callable[[Path], Path]
WRONG = [
    (b'{"a": 1, "a": 1}', "'a' occurs twice"),
    (b'{"b": {"a": 1, "c": 2, "a": 3}}', "'a' occurs twice"),
    (b'{"a": NaN}', "has NaN"),
    (b'{"a": [-Infinity]}', "has -Infinity"),
    (b'{"a": 1e999}', "has 1e999"),
    (b'{"a": "\\ud800"}', "half a character"),
    (b'{"\\uDFFFa": 1}', "half a character"),
    (b'{"a": "\xff"}', "must be JSON"),
    (b"[" * 100_000, "not nested too deep"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
]


@pytest.mark.parametrize(("data", "message"), WRONG)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "generation_config.json", "s.json"])
def test_json_without_one_meaning_is_refused_wherever_it_is_read(
    olmoe: Path, copy_of: Copy, name: str, data: bytes, message: str
) -> None:
    copy = copy_of(olmoe)
    (copy / name).write_bytes(data)
    with pytest.raises((CheckpointError, ScoresError), match=message):
        read_scores(copy / name, 6) if name == "s.json" else check_special_tokens(read_checkpoint(copy))


@pytest.mark.parametrize("text", ['{"a": "\\ud83d\\ude00"}', '{"a": "\\\\ud800"}', '{"a": {"__float__": "Infinity"}}'])
def test_whole_characters_and_wrapped_numbers_are_kept(text: str) -> None:
    assert parse(text.encode()) == json.loads(text)


def pipe(path: Path) -> None:
    """A pipe that nobody writes to."""
    os.mkfifo(path)


def endless(path: Path) -> None:
    """A device without an end."""
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    """No file at all."""
    path.mkdir()


@pytest.mark.parametrize("make", [pipe, endless, folder])
def test_what_is_no_regular_file_is_never_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x")
    with pytest.raises(CheckpointError, match="must be a regular file"):
        read_json(tmp_path / "x")
    with pytest.raises(ScoresError, match="must be a regular file"):
        read_scores(tmp_path / "x", 4)
    with pytest.raises(CheckpointError, match="must be a regular file"):
        read_header(tmp_path / "x")


@pytest.mark.parametrize("make", [pipe, endless, folder])
def test_neither_are_a_variant_s_files_nor_pictures(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "SHA256SUMS")
    (tmp_path / "manifest.json").write_text('{"files": {"sha256sums": ""}}')
    with pytest.raises(VerificationError, match="must be a regular file"):
        check_sums(tmp_path)
    with pytest.raises(VerificationError, match="must be a regular file"):
        sha256_file(tmp_path / "SHA256SUMS")
    with pytest.raises(VerificationError, match="must be a regular file"):
        read_facts(tmp_path / "SHA256SUMS")
    with pytest.raises(ImageError, match="must be a regular, readable file"):
        open_image(tmp_path / "SHA256SUMS")


def test_files_beyond_the_limit_are_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"[" + b"1," * (MAX_JSON_BYTES // 2) + b"1]")
    with pytest.raises(CheckpointError, match="at most 4,000,000 bytes"):
        read_json(tmp_path / "x")


@pytest.mark.parametrize("dtype", [["F32"], {"a": 1}, None, 4])
def test_a_dtype_that_is_no_word_is_refused(tmp_path: Path, dtype: object) -> None:
    write_raw(tmp_path / "x", {"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, 4]}}, b"0" * 4)
    with pytest.raises(CheckpointError, match="dtype"):
        read_header(tmp_path / "x")


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "F6_E2M3", "F8_E4M3FNUZ"])
def test_low_precision_numbers_are_called_quantised(tmp_path: Path, dtype: str) -> None:
    write_raw(tmp_path / "x", {"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}, b"0" * 4)
    with pytest.raises(CheckpointError, match="quantised"):
        read_header(tmp_path / "x")


def test_a_pointer_for_weights_says_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(WRONG[-1][0])
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read_header(tmp_path / "x")


def test_many_names_of_which_one_is_there_twice_are_refused_at_once(tmp_path: Path) -> None:
    names = [f"n{at}" for at in range(40_000)] + ["n39999"]
    (tmp_path / "s.json").write_text("{" + ",".join(f'"{name}":0' for name in names) + "}")
    with pytest.raises(ScoresError, match="'n39999' occurs twice"):
        read_scores(tmp_path / "s.json", 4)
    text = ("{" + ",".join(f'"{name}":0' for name in names) + "}").encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match="'n39999' is there twice"):
        read_header(tmp_path / "x")


def test_headers_of_too_many_tensors_are_not_parsed_to_the_end(tmp_path: Path) -> None:
    text = ("{" + '"a":{},' * (MAX_TENSORS + 3) + "not JSON").encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match="it names more"):
        read_header(tmp_path / "x")


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("olmoe", {"num_hidden_layers": 2**31 - 1}, "from 1 to 10,000"),
        ("olmoe", {"num_hidden_layers": 10**30}, "from 1 to 10,000"),
        ("olmoe", {"num_hidden_layers": 9_999, "num_experts": 99_999}, "200,000 experts"),
        ("olmoe", {"vocab_size": 10**30}, "whole number"),
        ("olmoe", {"clip_qkv": "x"}, "clip_qkv must be null or a number"),
        ("olmoe", {"clip_qkv": -1.0}, "clip_qkv must be null or a number"),
        ("olmoe", {"clip_qkv": 10**400}, "clip_qkv must be null or a number"),
        ("olmoe", {"clip_qkv": [1]}, "clip_qkv must be null or a number"),
        ("olmoe", {"clip_qkv": {"__float__": "Infinity"}}, "clip_qkv must be null or a number"),
        ("olmoe", {"clip_qkv": True}, "clip_qkv must be null or a number"),
        ("olmoe", {"norm_topk_prob": "no"}, "norm_topk_prob must be true or false"),
        ("olmoe", {"norm_topk_prob": 0}, "norm_topk_prob must be true or false"),
        ("olmoe", {"eos_token_id": ["a"]}, "eos_token_id"),
        ("olmoe", {"eos_token_id": [0, None]}, "eos_token_id"),
        ("olmoe", {"eos_token_id": [[1]]}, "eos_token_id"),
        ("olmoe", {"eos_token_id": 10**30}, "eos_token_id"),
        ("olmoe", {"eos_token_id": "2"}, "eos_token_id"),
        ("molmo", {"n_layers": 10**9}, "from 1 to 10,000"),
        ("molmo", {"moe_num_experts": 10**9}, "from 1 to 100,000"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_before_lists_are_made(
    request: pytest.FixtureRequest, copy_of: Copy, family: str, change: dict[str, object], message: str
) -> None:
    copy = copy_of(request.getfixturevalue(family))
    (copy / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        check_special_tokens(read_checkpoint(copy))


@pytest.mark.parametrize(
    "added",
    [5, "x", {}, [None], [{"id": 1}], [{"content": "y"}], [{"content": "y", "id": "x"}], [{"content": 1, "id": 1}],
     [{"content": "y", "id": -1}], [{"content": "y", "id": 1.5}]],
)  # fmt: skip
def test_added_tokens_that_are_none_are_refused(molmo: Path, copy_of: Copy, added: object) -> None:
    copy = copy_of(molmo)
    (copy / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    with pytest.raises(CheckpointError, match="an added token has a content"):
        check_special_tokens(read_checkpoint(copy))


@pytest.mark.parametrize(
    ("key", "value"),
    [("vit_layers", ["x"]), ("vit_layers", 3), ("vit_layers", [9]), ("vit_layers", [True]), ("vit_layers", []),
     ("image_norm_eps", "x"), ("image_norm_eps", [1]), ("image_norm_eps", 0), ("image_norm_eps", None)],
)  # fmt: skip
def test_vision_settings_of_the_wrong_kind_are_refused(molmo: Path, key: str, value: object) -> None:
    config = json.loads((molmo / "config.json").read_text())
    (config if key in config else config["vision_backbone"])[key] = value
    with pytest.raises(CheckpointError, match=key):
        read_tower(replace(read_checkpoint(molmo), config=config))
