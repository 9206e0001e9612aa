"""The parity set through int4 graphs, activations in float32 and in 8 bits: how far rounding takes the logits."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from export.run.graphs import Graphs
from export.variant import export_variant
from tests.support.molmo_parity import CASES, VARIANTS, crops_of, inputs, kept_features, knobs_of
from tests.support.paths import FIXTURES
from transform.arrays import Array
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint

KINDS = ("float32", "int8")


def rounding_by_case(work: Path, variants: Iterable[str] = VARIANTS) -> dict[str, float]:
    """CASE/VARIANT -> root mean square of the differences of its prompt's logits, as a part of the logits' own."""
    found = {}
    for variant in variants:
        graphs = {kind: Graphs(_exported(work / f"{variant}-{kind}", variant, kind), threads=1) for kind in KINDS}
        for case in [case for case, record in CASES.items() if variant in record["variants"]]:
            exact, rounded = (_logits(opened, case) for opened in graphs.values())
            found[f"{case}/{variant}"] = float(np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2)))
    return found


def _exported(out: Path, variant: str, kind: str) -> Path:
    keep, k = knobs_of(variant)
    knobs = Knobs(k if isinstance(k, int) else tuple(k), tuple(keep), form="int4", activations=kind)
    export_variant(make_plan(read_checkpoint(FIXTURES), knobs), out, verify=False)
    return out


def _logits(graphs: Graphs, case: str) -> Array:
    """Of the valid tokens of a case's prompt, row after row."""
    ids = inputs()[f"{case}/input_ids"].numpy().astype(np.int64)
    mask = (ids >= 0).astype(np.int64)
    logits, _ = graphs.step(graphs.embed(ids, _features(graphs, case)), mask, graphs.empty_cache(len(ids)))
    return logits[mask == 1]


def _features(graphs: Graphs, case: str) -> Array | None:
    if CASES[case]["kind"] == "text":
        return None
    masks, index = (inputs()[f"{case}/{name}"].numpy() for name in ("image_masks", "image_input_idx"))
    rows = zip(crops_of(case), masks, index, strict=True)
    return np.concatenate([graphs.image_features(c, m, kept_features(i)) for c, m, i in rows if (i >= 0).any()])
