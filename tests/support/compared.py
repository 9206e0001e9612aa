"""A decoder's graph beside a model of transformers, in every way of calling: prefill, cached steps, padding."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from export.gate.probe import MIN_MARGIN, MarginWatch
from export.run.bound import Bound
from export.run.graphs import Graphs
from tests.support.decoders import VOCABULARY, WINDOW
from tests.support.graphs import empty_cache, step
from tests.support.models import torch_logits
from transform.architectures.graph_facts import Routing
from transform.arrays import Array
from transform.load import load_model

LENGTH = 4 * WINDOW + 3
CUTS = (0, 9, 10, 15, LENGTH)  # an empty cache, one token, several, many
TOLERANCE = 1e-5
SEEDS = 20
Masks = tuple[tuple[str, Array], ...]


def ids_and_masks(seed: int = 0, vocabulary: int = VOCABULARY) -> tuple[Array, Masks]:
    """[2, s] ids, and masks that pad a row on the left, on the right."""
    ids = np.random.default_rng(seed).integers(3, vocabulary - 2, (2, LENGTH))
    left, right = np.ones_like(ids), np.ones_like(ids)
    left[0, :7] = right[1, -5:] = 0
    return ids, (("left", left), ("right", right))


def decidable(theirs: Any, routing: Routing, vocabulary: int = VOCABULARY) -> int:
    """The first seed of ids whose every expert choice float32 can decide."""
    for seed in range(SEEDS):
        ids, masks = ids_and_masks(seed, vocabulary)
        with MarginWatch(theirs, routing) as watch:
            torch_logits(theirs, ids, np.ones_like(ids))
            for _, mask in masks:
                watch.mask = torch.from_numpy(mask)
                torch_logits(theirs, ids, mask)
        if watch.smallest >= MIN_MARGIN:
            return seed
    raise AssertionError("no seed has clear choices")


def differences(text: Any, theirs: Any, routing: Routing, vocabulary: int = VOCABULARY) -> Mapping[str, float]:
    """The largest difference of a session's logits to a model's, as a part of the largest logit, by way of calling."""
    ids, masks = ids_and_masks(decidable(theirs, routing, vocabulary), vocabulary)
    whole = torch_logits(theirs, ids, np.ones_like(ids))
    scale = max(1.0, float(np.abs(whole).max()))
    found: dict[str, float] = {}

    def note(way: str, ours: Array, expected: Array) -> None:
        assert ours.shape == expected.shape
        assert np.isfinite(ours).all(), way
        found[way] = float(np.abs(ours - expected).max()) / scale

    logits, _ = step(text, {"input_ids": ids}, np.ones_like(ids), empty_cache(text, 2))
    note("prefill", logits, whole)
    cache = empty_cache(text, 2)
    for start, stop in pairwise(CUTS):
        logits, cache = step(text, {"input_ids": ids[:, start:stop]}, np.ones((2, stop), np.int64), cache)
        note(f"{start} to {stop}", logits, whole[:, start:stop])
    one = {name: value[:1] for name, value in _cache_of(text, ids[:, :9]).items()}
    for at in (9, 10, 11):  # of one row alone, which attention in one operator takes
        logits, one = step(text, {"input_ids": ids[:1, at : at + 1]}, np.ones((1, at + 1), np.int64), one)
        note(f"one row at {at}", logits, whole[:1, at : at + 1])
    for side, mask in masks:
        logits, _ = step(text, {"input_ids": np.where(mask == 1, ids, -1)}, mask, empty_cache(text, 2))
        assert np.isfinite(logits).all()
        note(f"padded {side}", logits[mask == 1], torch_logits(theirs, ids, mask)[mask == 1])
    return found


def in_place(graphs: Graphs, theirs: Any, routing: Routing, vocabulary: int = VOCABULARY) -> float:
    """The largest difference of steps whose past and present are one buffer, as `knobcast run` has them."""
    ids, _ = ids_and_masks(decidable(theirs, routing, vocabulary), vocabulary)
    whole = torch_logits(theirs, ids, np.ones_like(ids))
    sequence = Bound(graphs)
    sequence.prefill(ids[:1, :9])
    ours = np.stack([sequence.decode(int(token)) for token in ids[0, 9:]])
    return float(np.abs(ours - whole[0, 9:]).max()) / max(1.0, float(np.abs(whole).max()))


def check(text: Any, theirs: Any, routing: Routing) -> None:
    """A session against a model, in every way of calling."""
    found = differences(text, theirs, routing)
    assert max(found.values()) <= TOLERANCE, found


def loaded(variant: Path, form: str) -> Any:
    """The variant by transformers' own class, or with its codes as the values they stand for."""
    plainly = {"attn_implementation": "eager", "experts_implementation": "eager"}  # others take some widths alone
    if form.startswith("int"):
        return load_model(variant, **plainly)
    return AutoModelForCausalLM.from_pretrained(variant, dtype=torch.float32, **plainly).eval()


def _cache_of(text: Any, ids: Array) -> dict[str, Array]:
    return step(text, {"input_ids": ids}, np.ones_like(ids), empty_cache(text, len(ids)))[1]
