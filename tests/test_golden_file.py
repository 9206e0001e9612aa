"""Golden outputs that someone changed, sums and manifest following: refused by rule, whatever the change is."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from export.gate.golden import FILE, compare
from export.gate.golden_file import load_golden, with_golden_ids
from export.gate.image_probe import image_probe
from export.gate.verify import verify_directory
from export.variant import export_variant
from tests.support.variants import record_sums
from transform.errors import VerificationError
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint

Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def seeing(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("golden") / "seeing"
    export_variant(make_plan(read_checkpoint(molmo), Knobs(k=2, keep=(0,), tokens=288)), out)
    return out


@pytest.fixture
def copied(seeing: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(seeing, tmp_path / "v"))


def first(name: str, value: float) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        arrays[name] = arrays[name].copy()
        arrays[name].flat[0] = value
        return arrays

    return change


def other(name: str, make: Callable[[Any], Any]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, name: np.ascontiguousarray(make(arrays[name]))}


def longer(logits: Any) -> Arrays:
    return {"ids": np.ones((1, 525), np.int64), "logits": np.ones((1, 525, logits.shape[2]), np.float32)}


def without(name: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


@pytest.mark.parametrize("name", ["logits", "image.logits", "image.embeddings"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite_are_refused(copied: Path, name: str, value: float) -> None:
    (copied / FILE).write_bytes(save(first(name, value)(load_file(copied / FILE))))
    record_sums(copied)
    with pytest.raises(VerificationError, match=rf"{name} must be finite, 1 of its"):
        verify_directory(copied, lambda _: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((without(name), "must hold ids, logits") for name in ("ids", "logits", "image.rows", "image.input_ids")),
        (lambda arrays: {**arrays, "more": arrays["ids"]}, "must hold ids, logits"),
        (first("ids", -1), "ids must be from 0 to 249, they are from -1"),
        (first("ids", 250), "ids must be from 0 to 249"),
        (first("ids", 10**9), "ids must be from 0 to 249"),
        (first("image.input_ids", -1), "image.input_ids must be from 0 to 383"),
        (first("image.input_ids", 384), "image.input_ids must be from 0 to 383"),
        (first("image.input_ids", 7), "image.input_ids must be the"),
        (other("image.input_ids", lambda ids: np.concatenate((ids[:, :1], ids), 1)), "image.input_ids must be the"),
        (first("image.rows", 10**6), "image.rows must be from 0"),
        (first("image.rows", -1), "image.rows must be from 0"),
        (other("ids", lambda ids: ids.astype(np.float32)), r"ids must be I64 \[1, s\], it is F32"),
        (other("ids", lambda ids: ids.astype(np.int32)), "ids must be I64"),
        (other("ids", lambda ids: ids[:, :0]), "ids must be I64"),
        (other("ids", lambda ids: ids[0]), "ids must be I64"),
        (other("ids", lambda ids: ids[:, 1:]), r"logits must be F32 \[1, 17, V\]"),
        (lambda a: {**a, "ids": a["ids"][:, :5].copy(), "logits": a["logits"][:, :5].copy()}, "ids must be 6 to 524"),
        (lambda a: {**a, **longer(a["logits"])}, "ids must be 6 to 524 tokens, there are 525"),
        (other("logits", lambda logits: logits.astype(np.float16)), "logits must be F32"),
        (other("logits", lambda logits: logits[:, :, :0]), "logits must be F32"),
        (other("image.logits", lambda logits: logits[:, 1:]), "image.logits must be F32"),
        (other("image.embeddings", lambda rows: rows[1:]), "image.embeddings must be F32"),
        (other("image.embeddings", lambda rows: rows[:, 1:]), "image.embeddings must be F32"),
    ],
)
def test_what_the_checks_compute_with_must_be_there(
    copied: Path, change: Callable[[Arrays], Arrays], message: str
) -> None:
    (copied / FILE).write_bytes(save(change(load_file(copied / FILE))))
    record_sums(copied)
    with pytest.raises(VerificationError, match=message):
        verify_directory(copied, lambda _: None)


def test_a_resident_variant_has_the_pictures_logits(copied: Path) -> None:
    (copied / FILE).write_bytes(save(without("image.logits")(load_file(copied / FILE))))
    record_sums(copied)
    with pytest.raises(VerificationError, match="must hold the outputs that were recorded"):
        verify_directory(copied, lambda _: None)


def test_damaged_files_are_refused(copied: Path) -> None:
    checkpoint, whole = read_checkpoint(copied), (copied / FILE).read_bytes()
    for data in (b"", whole[:4], whole[:100], whole[:-1], whole + b"x", b"\xff" * 100):
        (copied / FILE).write_bytes(data)
        with pytest.raises(VerificationError, match=FILE):
            load_golden(copied, checkpoint)
    (copied / FILE).unlink()
    (copied / FILE).mkdir()
    with pytest.raises(VerificationError, match="plain file"):
        load_golden(copied, checkpoint)
    (copied / FILE).rmdir()
    os.mkfifo(copied / FILE)
    with pytest.raises(VerificationError, match="plain file"):
        load_golden(copied, checkpoint)


def test_what_was_recorded_is_taken(seeing: Path) -> None:
    checkpoint = read_checkpoint(seeing)
    golden = load_golden(seeing, checkpoint)
    assert golden is not None
    vision = json.loads((seeing / "manifest.json").read_text())["vision"]
    probe = image_probe(checkpoint, seeing, vision, 7)  # of another seed: the text differs, the picture doesn't
    vocab = checkpoint.settings.vocab
    assert (with_golden_ids(probe, golden, vocab).input_ids == golden["image.input_ids"]).all()
    assert (probe.input_ids != golden["image.input_ids"]).any()
    probe.input_ids[0, 0] = 5  # a text ends with another token than the last: older versions began with that
    assert with_golden_ids(probe, golden, vocab).input_ids[0, 0] == vocab - 1
    with pytest.raises(VerificationError, match=r"image\.input_ids must be the"):
        with_golden_ids(probe, golden, vocab + 1)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_one_infinity_doesnt_make_every_difference_small(value: float) -> None:
    ours, theirs = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    theirs[1, 2] = value
    with pytest.raises(VerificationError, match="must be finite, 1 of 6"):
        compare(ours, theirs, 1e-5, "text.onnx")
