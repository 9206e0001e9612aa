"""`sweep.json` is read as strictly as it is written."""

import json
from pathlib import Path

import pytest

from export.sweep.answers import read_answers, read_samples
from export.sweep.table import (
    Cost,
    Data,
    Drop,
    Latency,
    Point,
    Quality,
    Share,
    Source,
    Table,
    Work,
    Workload,
    read_table,
    table_text,
)
from tests.support.sweeps import synthetic_sweep
from transform.errors import VerificationError

SHARE = Share(0.5, 0.1, (0.3, 0.7), 20)
POINT = Point(
    "k4-b1-t432-cpu", "4", (4,), (0,), 432, "cpu", "source", "knobcast export M --k 4",
    Cost(10, 5, 40, {"qa": Work(384, 600, 10, 20, 1, 100)}),
    Quality(SHARE, {"colour": SHARE}, Drop(0.0, None, None)),
    {"qa": Latency(1.0, 2.0, 0.5, 6.5, (6.0, 7.0), None)},
)  # fmt: skip
TABLE = Table(
    Source("m", "m", "molmo", "0" * 64, 2, (8, 8), 64), Data("test.jsonl", "1" * 64, 20, 4, "exact_match"),
    {"qa": Workload((640, 480), 32, 8)}, "k=4 blocks=1", "scores.json", POINT.name, {"cpu": "x"}, (POINT,),
)  # fmt: skip


def test_a_table_comes_back_as_it_was() -> None:
    assert Table.parse(json.loads(table_text(TABLE))) == TABLE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"accuracy": 0.5', '"accuracy": "0.5"'),
        ('"samples": 20', '"samples": true'),
        ('"full": "k4-b1-t432-cpu"', '"full": "k8"'),
        ('"form": "cpu"', '"forms": "cpu"'),
        ('"schema": 1', '"schema": 2'),
        ('"prompt": 32', '"prompt": 32.5'),
    ],
)
def test_a_damaged_one_is_refused(old: str, new: str) -> None:
    text = table_text(TABLE)
    assert old in text
    with pytest.raises(VerificationError, match=r"Run the sweep again"):
        Table.parse(json.loads(text.replace(old, new)))


def test_answers_come_back_and_damaged_ones_are_named(tmp_path: Path) -> None:
    table = synthetic_sweep(tmp_path)
    assert read_table(tmp_path) == table
    samples = read_samples(tmp_path)
    found = read_answers(tmp_path, table.full, len(samples.ids))
    quality = table.point(table.full).quality
    assert quality is not None
    assert sum(found.scores) / len(found.scores) == pytest.approx(quality.total.accuracy, abs=1e-12)
    with pytest.raises(VerificationError, match=r"must be that of a file, got '\.\./samples'"):
        read_answers(tmp_path, "../samples", len(samples.ids))
    with pytest.raises(VerificationError, match=r"119 answers and scores, got 120 and 120"):
        read_answers(tmp_path, table.full, 119)
    (tmp_path / "answers" / f"{table.full}.json").unlink()
    with pytest.raises(VerificationError, match=r"must be there"):
        read_answers(tmp_path, table.full, len(samples.ids))
