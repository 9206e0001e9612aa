"""A variant whose files have runtimes load a library or write somewhere is no variant."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from export.run.graphs import open_tokenizer
from tests.support.command import knobcast
from tests.support.published import variant
from tests.support.variants import read_json, record_sums
from transform.errors import CheckpointError


@pytest.fixture(scope="module")
def made(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return variant(molmo, tmp_path_factory.mktemp("variants") / "k1", 1)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("decoder.session_options.custom_ops_library", "evil.so"), ("decoder.session_options.enable_profiling", "x"),
        ("decoder.session_options.provider_options", [{"cuda": {"plugin_library": "evil.so"}}]),
        ("decoder.session_options.provider_options", [{"OpenVINO": {"cache_dir": "/etc"}}]),
        ("decoder.session_options.provider_options", [{"CoreML": {"ModelCacheDirectory": "/etc"}}]),
        ("decoder.session_options.provider_options", [{"QNN": {"Backend_PATH": "evil.so"}}]),
        ("decoder.session_options.provider_options", [{"cuda": {"gpu_external_alloc": "4096"}}]),
        ("decoder.filename", "../text.onnx"), ("decoder.filename", "/etc/passwd"), ("decoder.filename", 5),
        ("vision.config_filename", "a/b"),
    ],
)  # fmt: skip
def test_what_would_be_loaded_or_written_is_refused(place: str, value: object, made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "v"))
    told = read_json(copy / "genai_config.json")
    inner: Any = told["model"]
    *parts, last = place.split(".")
    for part in parts:
        inner = inner[part]
    inner[last] = value
    (copy / "genai_config.json").write_text(json.dumps(told))
    record_sums(copy)
    for words in (("verify", copy, "--level", "files"), ("pull", f"dir:{copy}", tmp_path / "out")):
        done = knobcast(*words)
        assert (done.code, "genai_config.json: " in done.said) == (1, True), done.said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("part", "times"), [("normalizer", 8), ("decoder", 2)])
def test_a_tokenizer_that_makes_short_texts_long_is_refused(part: str, times: int, made: Path, tmp_path: Path) -> None:
    """Eight replacements of a letter by sixteen take all memory for the first prompt that has it."""
    copy = Path(shutil.copytree(made, tmp_path / "v"))
    told: dict[str, object] = {"version": "1.0"}
    one = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 16}
    for count, code in ((times, 1), (1, 0)):
        kinds = {"normalizer": "normalizers", "decoder": "decoders"}
        told[part] = {"type": "Sequence", kinds[part]: [one] * count}
        (copy / "tokenizer.json").write_text(json.dumps(told))
        record_sums(copy)
        done = knobcast("verify", copy, "--level", "files")
        assert (done.code, "times as long" in done.said) == (code, bool(code)), done.said
    text = (copy / "tokenizer.json").read_text().replace("Replace", r"\u0052eplace").replace("e" * 16, "e" * 17)
    (copy / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="up to 17 times"):
        open_tokenizer(copy)


def test_an_io_json_that_is_none_isnt_pulled(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "v"))
    told = read_json(copy / "io.json") | {"session_options": {"session.enable_profiling": "/tmp/x"}}
    (copy / "io.json").write_text(json.dumps(told))
    record_sums(copy)
    assert "none of which names a file" in knobcast("pull", f"dir:{copy}", tmp_path / "out").said
    assert not (tmp_path / "out").exists()
