"""Reading headers: what is accepted, and every damaged or hostile checkpoint refused with its reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.support.safetensors_file import write_raw
from transform.architectures import architecture_named, known_model_types
from transform.errors import CheckpointError
from transform.read import read_checkpoint
from transform.safetensors_header import read_header
from transform.strict_json import Record

Copy = Callable[[Path], Path]
F4 = {"dtype": "F32", "shape": [1]}


def test_the_table_equals_what_safetensors_reads(molmo: Path) -> None:
    ours = read_checkpoint(molmo)
    theirs = load_file(molmo / "model.safetensors")
    assert {n: t.shape for n, t in ours.tensors.items()} == {n: a.shape for n, a in theirs.items()}
    data = (molmo / "model.safetensors").read_bytes()
    for name, t in ours.tensors.items():
        assert data[t.start : t.start + t.nbytes] == theirs[name].tobytes()


def test_sharded_checkpoints_read_like_single_ones(olmoe: Path) -> None:
    checkpoint = read_checkpoint(olmoe)
    assert len({t.file for t in checkpoint.tensors.values()}) > 1
    assert checkpoint.settings.layers == 6
    assert checkpoint.settings.top_k == (4,) * 6


def test_only_what_the_index_names_is_weights(olmoe: Path, copy_of: Copy) -> None:
    copy = copy_of(olmoe)
    (copy / "consolidated.safetensors").write_bytes(b"not weights")
    assert read_checkpoint(copy).tensors.keys() == read_checkpoint(olmoe).tensors.keys()


def test_the_flat_spelling_of_names_is_the_same_checkpoint(molmo: Path, copy_of: Copy) -> None:
    copy = copy_of(molmo)
    tensors = load_file(molmo / "model.safetensors")
    flat = {n.replace(".attn.", ".").replace(".mlp.", "."): a for n, a in tensors.items()}
    save_file(flat, copy / "model.safetensors")
    checkpoint = read_checkpoint(copy)
    assert checkpoint.name("attention.qkv", 2) == "model.transformer.blocks.2.att_proj.weight"
    assert len(checkpoint.tensors) == len(tensors)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": {**F4, "data_offsets": [0, 8]}}, b"0" * 8, "must take 4 bytes"),
        ({"a": {**F4, "data_offsets": [0, 4]}}, b"0" * 3, "must hold"),
        ({"a": {**F4, "data_offsets": [0, 4]}}, b"0" * 9, "must hold"),
        ({"a": {**F4, "data_offsets": [0, 4]}, "b": {**F4, "data_offsets": [2, 6]}}, b"0" * 6, "overlap"),
        ({"a": {**F4, "data_offsets": [4, 8]}}, b"0" * 8, "gap"),
        ({"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}, b"0" * 4, "dtype"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0" * 4, "impossible shape"),
        ({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, b"0" * 4, "impossible shape"),
        ({"a": {**F4, "data_offsets": [-4, 0]}}, b"", "impossible offsets"),
        ({"../../etc/passwd": {**F4, "data_offsets": [0, 4]}}, b"0" * 4, "tensor names"),
        ({}, b"", "name 1 to"),
    ],
)
def test_irregular_files_are_refused(tmp_path: Path, header: Record, data: bytes, message: str) -> None:
    write_raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("data", [b"", b"1234567", (2**63).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"[]"])
def test_files_without_a_header_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError):
        read_header(tmp_path / "x.safetensors")


def test_a_tensor_named_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps({**F4, "data_offsets": [0, 4]})
    text = f'{{"a": {one}, "a": {one}}}'.encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"0000")
    with pytest.raises(CheckpointError, match="twice"):
        read_header(tmp_path / "x.safetensors")


def test_a_missing_shard_is_named(olmoe: Path, copy_of: Copy) -> None:
    copy = copy_of(olmoe)
    shard = sorted(copy.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        read_checkpoint(copy)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors", "sub/x.safetensors", "x.bin"])
def test_an_index_can_not_name_files_elsewhere(olmoe: Path, copy_of: Copy, name: str) -> None:
    copy = copy_of(olmoe)
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = name
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="own directory"):
        read_checkpoint(copy)


def test_pickles_are_refused_with_the_way_out(molmo: Path, copy_of: Copy) -> None:
    copy = copy_of(molmo)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only pickles"):
        read_checkpoint(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "must be one of afmoe, aria, .*molmo, molmo2"),
        ({"model_type": ["molmo"]}, "must be one of afmoe, aria, .*molmo, molmo2"),
        ({"block_type": "sequential"}, "dense Molmo"),
        ({"moe_interleave": True}, "moe_interleave"),
        ({"n_layers": 5}, "missing"),
        ({"n_layers": 3}, "unexpected"),
        ({"n_layers": True}, "whole number"),
        ({"d_model": 128}, "shape"),
        ({"moe_top_k": 9}, "from 1 to 8"),
        ({"moe_top_k": [4, 4]}, "4 numbers"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    molmo: Path, copy_of: Copy, change: dict[str, object], message: str
) -> None:
    copy = copy_of(molmo)
    config = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(copy)


@pytest.mark.parametrize("model_type", [name for name in known_model_types() if architecture_named(name).complete])
def test_every_family_is_complete_data(model_type: str, molmo: Path, olmoe: Path) -> None:
    directory = {"molmo": molmo, "olmoe": olmoe}[model_type]  # one more family: one more row
    checkpoint = read_checkpoint(directory)
    assert checkpoint.architecture.model_type == model_type
    assert checkpoint.expected().keys() == checkpoint.tensors.keys()
