"""Which files hold the weights: the ones that transformers loads, or a refusal that says what is there instead."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from transform.errors import CheckpointError
from transform.read import read_checkpoint
from transform.weight_files import INDEX, SINGLE

Copy = Callable[[Path], Path]


def split(directory: Path, change: float = 0.0) -> list[str]:
    """Turn the single file of a checkpoint into two shards with an index, one tensor changed; returns their names."""
    tensors = load_file(directory / SINGLE)
    names = sorted(tensors)
    tensors[names[0]] = tensors[names[0]] + change
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    files = [f"model-{n}-of-2.safetensors" for n in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        save_file({name: tensors[name] for name in half}, directory / file, {"format": "pt"})
    table = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return files


def single(directory: Path) -> Path:
    """A checkpoint's weights brought into one file, its shards and index gone."""
    shards = sorted(directory.glob("model-*.safetensors"))
    if shards:
        tensors = {name: array for shard in shards for name, array in load_file(shard).items()}
        for file in (*shards, directory / INDEX):
            file.unlink()
        save_file(tensors, directory / SINGLE, {"format": "pt"})
    return directory


@pytest.fixture(params=["olmoe", "molmo"])
def copy(request: pytest.FixtureRequest, copy_of: Copy) -> Path:
    """A copy of a checkpoint of either family, in one file."""
    return single(copy_of(request.getfixturevalue(request.param)))


@pytest.mark.parametrize("gone", [1, 2])
def test_where_shards_of_the_index_are_gone_the_single_file_counts(copy: Path, gone: int) -> None:
    for file in split(copy, 1.0)[:gone]:
        (copy / file).unlink()
    assert {t.file.name for t in read_checkpoint(copy).tensors.values()} == {SINGLE}


def test_two_whole_different_copies_are_refused_with_both_names(copy: Path) -> None:
    split(copy, 1.0)
    with pytest.raises(CheckpointError, match=f"{SINGLE} and the 2 files of {INDEX} hold different"):
        read_checkpoint(copy)


def test_a_copy_with_fewer_tensors_is_another_one(copy: Path) -> None:
    split(copy)
    tensors = load_file(copy / SINGLE)
    save_file(dict(list(tensors.items())[:-1]), copy / SINGLE, {"format": "pt"})
    with pytest.raises(CheckpointError, match="hold different"):
        read_checkpoint(copy)


def test_of_two_equal_copies_the_one_that_transformers_loads_is_read(copy: Path) -> None:
    split(copy)
    assert {t.file.name for t in read_checkpoint(copy).tensors.values()} == {SINGLE}


def test_an_index_of_the_single_file_is_no_second_copy(copy: Path) -> None:
    table = dict.fromkeys(load_file(copy / SINGLE), SINGLE)
    (copy / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    assert read_checkpoint(copy).tensors


@pytest.mark.parametrize("name", ["model (2).safetensors", "my model+1.safetensors", "Gewichte_ä.safetensors"])
def test_shards_may_have_any_plain_name(copy: Path, name: str) -> None:
    (copy / SINGLE).rename(copy / name)
    table = dict.fromkeys(load_file(copy / name), name)
    (copy / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    assert {t.file.name for t in read_checkpoint(copy).tensors.values()} == {name}


@pytest.mark.parametrize(
    "name",
    ["a" * 300 + ".safetensors", ["x"], {"x": 1}, None, 3, "", ".safetensors", "a\nb.safetensors", "a\\b.safetensors"],
)  # fmt: skip
def test_names_that_are_no_plain_ones_are_refused(molmo: Path, copy_of: Copy, name: object) -> None:
    copy = copy_of(molmo)
    (copy / SINGLE).unlink()
    (copy / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="own directory"):
        read_checkpoint(copy)


def test_an_index_may_name_a_tensor_that_nobody_asks_for(copy: Path) -> None:
    split(copy)
    (copy / SINGLE).unlink()
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"]["model.rotary.unused"] = "model-1-of-2.safetensors"
    (copy / INDEX).write_text(json.dumps(index))
    assert "model.rotary.unused" not in read_checkpoint(copy).tensors


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], f"Download {INDEX} too"),
        (["model.fp16.safetensors"], f"Call it {SINGLE}"),
        (["consolidated.safetensors"], f"Call it {SINGLE}"),
        (["adapter_model.safetensors"], "Merge it"),
        (["pytorch_model.bin"], "only pickles"),
        (["model-Q4_K_M.gguf"], "only GGUF"),
        ([], f"no {SINGLE} and no {INDEX}"),
    ],
)
def test_without_weights_by_their_usual_names_it_says_what_is_there(
    molmo: Path, copy_of: Copy, there: list[str], message: str
) -> None:
    copy = copy_of(molmo)
    (copy / SINGLE).unlink()
    for name in there:
        (copy / name).touch()
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(copy)


def test_a_gguf_file_alone_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"only GGUF \(model-Q4_K_M.gguf\).*Use the checkpoint"):
        read_checkpoint(tmp_path)


def test_a_link_to_nothing_is_called_so(molmo: Path, copy_of: Copy) -> None:
    copy = copy_of(molmo)
    (copy / SINGLE).unlink()
    (copy / SINGLE).symlink_to("../blobs/gone")
    with pytest.raises(CheckpointError, match="a link to nothing"):
        read_checkpoint(copy)


def test_a_folder_of_the_cache_is_told_from_a_checkpoint(molmo: Path, tmp_path: Path) -> None:
    shutil.copytree(molmo, tmp_path / "models--a--b" / "snapshots" / "0123")
    with pytest.raises(CheckpointError, match="below snapshots/"):
        read_checkpoint(tmp_path / "models--a--b")
