"""The reference's parity cases as tensors, for every test that compares with them."""

import hashlib
import json
from functools import cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.support.paths import FIXTURES
from tests.support.pictures import synthetic_image
from transform.arrays import Array
from transform.molmoe.preprocessing import preprocess

RECORDS: dict[str, Any] = json.loads((FIXTURES / "parity_cases.json").read_text())
CASES: dict[str, Any] = RECORDS["cases"]
VARIANTS: dict[str, Any] = RECORDS["variants"]


@cache
def inputs() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "parity_inputs.safetensors")


@cache
def outputs() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "parity_outputs.safetensors")


def knobs_of(variant: str) -> tuple[list[int], int | list[int]]:
    """Kept blocks and k of a published variant; a list of k counts kept blocks."""
    keep, k = VARIANTS[variant]["keep_blocks"], VARIANTS[variant]["top_k"]
    return keep, [k[i] for i in keep] if isinstance(k, list) else k


def formula_crops(seed: int, count: int) -> np.ndarray:
    """The exact synthetic crops [count, 576, 588]."""
    k, p, q = (np.arange(n, dtype=np.int64) for n in (count, 576, 588))
    k, p, q = k[:, None, None], p[None, :, None], q[None, None, :]
    v = (7919 * k + 104729 * p + 1299709 * q + 31 * p * q + 611953 * seed) % 1024
    return ((2 * v - 1023) / 512).astype(np.float32)


@cache
def model_inputs(case: str) -> dict[str, torch.Tensor]:
    """What `forward` takes for a case; crops that only fill up the batch are -1."""
    record, given = CASES[case], {"input_ids": inputs()[f"{case}/input_ids"]}
    if record["kind"] == "text":
        return given
    if record["kind"] == "end_to_end":
        width, height = record["image_size_wh"]
        image = synthetic_image(width, height, record["image_seed"])
        crops = preprocess(image).images[None]
    else:
        counts = record["num_crops_incl_global"]
        crops = np.full((len(counts), max(counts), 576, 588), -1.0, np.float32)
        for row, (seed, count) in enumerate(zip(record["crops_seed"], counts, strict=True)):
            if seed is not None:
                crops[row, :count] = formula_crops(seed, count)
        assert hashlib.sha256(crops.tobytes()).hexdigest() == record["crops_sha256_float32"]
    names = ("image_masks", "image_input_idx")
    return {**given, "images": torch.from_numpy(crops), **{name: inputs()[f"{case}/{name}"] for name in names}}


def crops_of(case: str) -> Array:
    """All crops of a case [b, n, 576, 588], padded with -1."""
    return model_inputs(case)["images"].numpy()


def kept_features(index: Array) -> Array:
    """feature_index of one row's index map: kept features in sequence order."""
    flat = index.reshape(-1)
    order = np.argsort(flat, kind="stable")
    return order[flat[order] >= 0].astype(np.int64)


def selected(case: str, logits: torch.Tensor) -> torch.Tensor:
    """The logits [B, P, V] at the recorded positions, out of [B, S, V]."""
    where = inputs()[f"{case}/logit_positions"].long().clamp(min=0)
    return logits.gather(1, where[..., None].expand(-1, -1, logits.shape[-1]))
