"""What packing costs and saves: accuracy of the embedded model as each form quantises it, and bytes at full size.

Differences are paired: the same questions, answered by the floats and by the values that codes and scales stand for.
Their intervals are over pictures, whose questions err together.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts.nano import data
from artifacts.nano.build import TARGET
from importance.evaluate import evaluate, prepare
from importance.prompts import load_processor
from importance.readers.read import read_samples
from importance.samples import Sample
from importance.statistics import paired_drop
from tests.support.full_size import released_config, write_sparse_molmoe
from tests.support.paths import ROOT
from transform.depth import drop_blocks
from transform.forms import FORMS, form_named
from transform.load import load_view, quiet_transformers
from transform.machine import fitting_threads
from transform.packed_layout import Packing, packed_bytes, packing_for
from transform.read import read_checkpoint
from transform.sizes import weight_bytes

KEPT = tuple(i for i in range(16) if i not in (5, 8, 10, 12))
_TWO_SIDED = 1.96  # standard errors of a 95 % interval


def bench_bytes() -> dict[str, Any]:
    """MolmoE-1B's sizes by headers alone, 12 of 16 blocks: each form's bytes as a part of bfloat16's."""
    found: dict[str, Any] = {"blocks": len(KEPT)}
    with tempfile.TemporaryDirectory() as work:
        config = released_config(ROOT / "tests" / "fixtures" / "molmo")
        whole = read_checkpoint(write_sparse_molmoe(Path(work) / "molmoe", config, "BF16"))
        kept = drop_blocks(whole, KEPT)
        for form in FORMS:
            packing = packing_for(form, kept)
            if packing is not None:
                alone = Packing(packing.bits, packing.block)
                found[f"{form.name}_over_bfloat16"] = round(packed_bytes(kept, packing) / weight_bytes(kept), 4)
                found[f"{form.name}_decoder_over_bfloat16"] = round(packed_bytes(kept, alone) / weight_bytes(kept), 4)
    return found | {"bar": "int4_over_bfloat16 <= 0.30"}


def bench_accuracy() -> dict[str, Any]:
    """Accuracy on the embedded model's test questions, and what each part's packing loses against the floats."""
    file = data.TARGET / "test.jsonl"
    if not file.exists():
        data.write(data.TARGET, "test", data.PICTURES["test"])
    samples = read_samples([file])
    int4, int8 = (packing_for(form_named(name), read_checkpoint(TARGET)) for name in ("int4", "int8"))
    assert int4 is not None
    assert int8 is not None
    parts = {
        "decoder": Packing(4, int4.block),
        "decoder_and_tables": Packing(4, int4.block, tables=4),
        "decoder_and_tables_8": Packing(4, int4.block, tables=8),
        "decoder_and_vision": Packing(4, int4.block, vision=8),
    }
    pictures = [str(sample.images[0]) for sample in samples]
    floats = scores(samples, None)
    found: dict[str, Any] = {"questions": len(samples), "floats_right": _share(floats)}
    decoder: list[float] = []
    for name, packing in {**parts, "int4": int4, "int8": int8}.items():
        ours = scores(samples, packing)
        decoder = decoder or ours
        found[f"{name}_right"] = _share(ours)
        for against, theirs in (("floats", floats), ("decoder", decoder)):
            if name != "int8" or against == "floats":
                drop = paired_drop(theirs, ours, pictures)
                found[f"{name}_loses_to_{against}"] = round(float(drop.mean[0]), 4)
                found[f"{name}_to_{against}_interval"] = round(_TWO_SIDED * float(drop.stderr[0]), 4)
    del found["decoder_loses_to_decoder"], found["decoder_to_decoder_interval"]
    return found


def _share(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)


def scores(samples: list[Sample], packing: Packing | None) -> list[float]:
    """0 or 1 per question, in PyTorch on the values that the packed weights stand for."""
    checkpoint = read_checkpoint(TARGET)
    quiet_transformers()
    with fitting_threads(checkpoint):
        model, _ = load_view(checkpoint, packed=packing)
        prepared = prepare(model, load_processor(checkpoint), samples, hold=False)
        return list(evaluate(model, prepared).scores)


def bars() -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py."""
    return [("packed_bytes_full_size", bench_bytes), ("packed_accuracy", bench_accuracy)]
