"""What `--activations int8` costs: answers of the graphs themselves, for PyTorch has no such kernels."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts.nano import data
from export.gate.activations import TOLERANCE
from export.run.answer import Runner
from export.variant import export_variant
from importance.readers.read import read_samples
from importance.samples import EncodedImage, Sample
from importance.statistics import paired_drop
from importance.tasks import metric_named
from tests.support.parity_activations import rounding_by_case
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import DEFAULT

EVERY = 6  # of the test questions, so that all kinds and pictures have their share
NEW_TOKENS = 16
_TWO_SIDED = 1.96


def bench_activations(work: Path) -> dict[str, Any]:
    """Accuracy of the embedded model's int4 graphs, 432 tokens per picture, with activations of both kinds."""
    file = data.TARGET / "test.jsonl"
    if not file.exists():
        data.write(data.TARGET, "test", data.PICTURES["test"])
    samples = read_samples([file])[::EVERY]
    answers = {kind: _answers(work / f"activations-{kind}", kind, samples) for kind in ("float32", "int8")}
    grade = metric_named("exact_match")
    right = {
        kind: [float(grade(text, sample)) for text, sample in zip(texts, samples, strict=True)]
        for kind, texts in answers.items()
    }
    drop = paired_drop(right["float32"], right["int8"], [str(sample.images[0]) for sample in samples])
    return {
        "questions": len(samples),
        **{f"activations_{kind}_right": round(sum(values) / len(values), 4) for kind, values in right.items()},
        "int8_loses_to_float32_activations": round(float(drop.mean[0]), 4),
        "int8_to_float32_activations_interval": round(_TWO_SIDED * float(drop.stderr[0]), 4),
        "same_answers": sum(a == b for a, b in zip(*answers.values(), strict=True)),
    }


def _answers(out: Path, activations: str, samples: Sequence[Sample]) -> list[str]:
    knobs = replace(Knobs(tokens=432, form="int4"), activations=activations)
    export_variant(make_plan(read_checkpoint(DEFAULT), knobs), out, verify=False)
    runner = Runner(out, threads=1)
    found = []
    for sample in samples:
        picture = sample.images[0]
        assert not isinstance(picture, EncodedImage)  # the file names them
        found.append(runner.answer(picture, sample.prompt, NEW_TOKENS).text)
    return found


def bench_parity(work: Path) -> dict[str, Any]:
    """The parity set's logits by the int4 graphs, every variant and case: what rounding does to them."""
    found = list(rounding_by_case(work / "activations-parity").values())
    return {
        "cases": len(found),
        "median_rounding": round(statistics.median(found), 4),
        "largest_rounding": round(max(found), 4),
        "bar": f"largest_rounding <= {TOLERANCE}",
    }


def bars(work: Path) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py."""
    return [("activations", lambda: bench_activations(work)), ("activations_parity", lambda: bench_parity(work))]
