"""Corpora of malformed checkpoints, records and graphs: each is refused in words or gives what it says; nothing is
written but the target, and nothing of it stays after a refusal."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fuzz.mutate import in_header, in_protobuf
from tests.support.command import knobcast
from tests.support.models import save_source
from tests.support.variants import record_sums, write_variant
from transform.read import read_checkpoint

ODD: tuple[Any, ...] = (None, -1, 0, 2**31, 1e308, "x", [], {"a": 1}, 0.5)
KEYS = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "num_experts",
    "num_experts_per_tok", "vocab_size", "intermediate_size", "model_type",
)  # fmt: skip
INDEX = "model.safetensors.index.json"
MAPS: dict[str, Any] = {
    "no map": {}, "a list": [], "a map that is a list": {"weight_map": []}, "text": "x", "a number": 5,
    "leads out": {"weight_map": {"a": "../x.safetensors"}}, "absolute": {"weight_map": {"a": "/etc/passwd"}},
    "a name of lists": {"weight_map": {"a": ["x"]}}, "no such file": {"weight_map": {"a": "gone.safetensors"}},
    "a long name": {"weight_map": {"a": "x" * 300}}, "NUL": {"weight_map": {"a": "a\0b"}},
}  # fmt: skip
BYTES = (b"", b"\0", b"{", b"[" * 100_000, b"\xff\xfe", b"\x80\x04\x95pickle", b"null", b'{"a": 1, "a": 2}')
FACTS = ("top_k", "blocks_kept", "knobs", "files", "source.name", "schema")
Change = Callable[[Path], object]


def in_record(file: str, key: str, value: object) -> Change:
    """A key of a JSON file, `a.b` of an object in it, with another value."""

    def change(directory: Path) -> None:
        tree = json.loads((directory / file).read_bytes())
        *outer, last = key.split(".")
        holder = tree
        for name in outer:
            holder = holder[name]
        holder[last] = value
        (directory / file).write_text(json.dumps(tree))

    return change


def whole(file: str, data: bytes) -> Change:
    """Other bytes in a file."""
    return lambda directory: (directory / file).write_bytes(data)


def drawn(file: str, seed: int, mutate: Callable[[Random, bytes], bytes]) -> Change:
    """A file changed as the fuzzer does, by a seed."""
    return lambda directory: (directory / file).write_bytes(mutate(Random(seed), (directory / file).read_bytes()))


WRONG: tuple[object, ...] = (None, -1, "x", [], {})
CHECKPOINTS: dict[str, Change] = {
    **{f"{key} {value!r}": in_record("config.json", key, value) for key in KEYS for value in ODD},
    **{f"index: {name}": whole(INDEX, json.dumps(value).encode()) for name, value in MAPS.items()},
    **{f"{file} {data[:9]!r}": whole(file, data) for file in ("config.json", "model.safetensors") for data in BYTES},
    **{f"header {seed}": drawn("model.safetensors", seed, in_header) for seed in range(24)},
}
RECORDS: dict[str, Change] = {
    **{f"manifest {key} {value!r}": in_record("manifest.json", key, value)
       for key in FACTS for value in WRONG},
    **{f"{file} {data[:9]!r}": whole(file, data)
       for file in ("SHA256SUMS", "manifest.json", "text.onnx", "io.json") for data in BYTES},
    **{f"graph {seed}": drawn("text.onnx", seed, in_protobuf) for seed in range(24)},
}  # fmt: skip


def test_the_corpora_are_as_large_as_they_are_said_to_be() -> None:
    assert (len(CHECKPOINTS), len(RECORDS)) == (132, 86)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("malformed") / "source"
    save_source(made)
    return made


@pytest.fixture(scope="module")
def variant(source: Path) -> Path:
    made = write_variant(source, source.parent / "variant", keep=(0, 1))
    record_sums(made)
    return made


@pytest.mark.parametrize("change", CHECKPOINTS.values(), ids=[*map(str, range(len(CHECKPOINTS)))])
def test_a_malformed_checkpoint(change: Change, source: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(source, tmp_path / "model"))
    change(place)
    done = knobcast("export", place, "--k", 1, "--no-onnx", "--no-verify", "--out", tmp_path / "out")
    left = {path.name for path in tmp_path.iterdir()}
    assert done.code in (0, 1), done.said
    assert left == {"model", "out"} if done.code == 0 else left == {"model"}, done.said
    if done.code == 0:
        assert set(read_checkpoint(tmp_path / "out").settings.top_k) == {1}
    else:
        assert "error:" in done.said


@pytest.mark.parametrize("change", RECORDS.values(), ids=[*map(str, range(len(RECORDS)))])
def test_a_malformed_record_or_graph(change: Change, variant: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(variant, tmp_path / "v"))
    change(place)
    graph = place / "text.onnx"
    if b"" != graph.read_bytes() != (variant / "text.onnx").read_bytes():
        record_sums(place)  # as someone who changes both would
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    for words in (["verify", place, "--level", "files"], ["push", place, f"dir:{tmp_path / 'shelf'}"]):
        done = knobcast(*words)
        assert done.code in (0, 1), done.said
        assert done.code == 0 or "error:" in done.said
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    pushed = done.code == 0
    assert {path.name for path in tmp_path.iterdir()} == ({"v", "shelf"} if pushed else {"v"})
    layout = knobcast("layout", place, "--for", "triton", "--out", tmp_path / "laid")
    assert layout.code in (0, 1), layout.said
    assert (tmp_path / "laid").exists() == (layout.code == 0)
