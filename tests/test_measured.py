"""What a sweep measured goes along with the variant: manifest and card say it, verify reads it strictly."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from export.files.facts import check_facts
from export.files.measured import Measured
from export.sweep.table import FILE, Point, Table, table_text
from importance.choose import SCORES
from importance.scores import Scores, model_digest, write_scores
from tests.support.command import knobcast
from tests.support.sweeps import synthetic_sweep
from transform.errors import VerificationError
from transform.read import read_checkpoint

KNOBS = ("--k", "2", "--keep-blocks", "0,3", "--tokens", "432")


@pytest.fixture(scope="module")
def swept(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Table, Point]:
    """A sweep of the tiny model: numbers that nobody measured, of a setting that can be made."""
    directory = tmp_path_factory.mktemp("sweep")
    table = synthetic_sweep(directory)
    source = replace(table.source, path=str(molmo), digest=model_digest(read_checkpoint(molmo)))
    point = replace(table.points[0], k="2", top_k=(2, 2), keep_blocks=(0, 3), tokens=432)
    table = replace(table, source=source, points=(point, *table.points[1:]))
    (directory / FILE).write_text(table_text(table))
    return directory, table, point


def test_the_picked_variant_says_what_was_measured(swept: tuple[Path, Table, Point], tmp_path: Path) -> None:
    directory, table, point = swept
    out = tmp_path / "v"
    write_scores(Scores(dict.fromkeys(range(4), 0.5), samples=7), directory / SCORES, force=True)
    # the least accurate and quickest of all
    done = knobcast("pick", directory, "--at", "qa", "--rule", "lookup", "--latency-ms", "1", "--export", out)
    assert done.code == 0, done.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["verification"] != "skipped"
    digest = hashlib.sha256((directory / SCORES).read_bytes()).hexdigest()
    assert (manifest["scores"]["source"], manifest["scores"]["sha256"]) == (SCORES, digest)
    assert (manifest["blocks_kept"], manifest["top_k"]) == ([0, 3], [2, 2])
    assert Measured.parse(manifest["measured"], "") == table.measured(point)
    text = (out / "README.md").read_text()
    assert point.quality
    full = table.point(table.full).quality
    assert full
    for said in (
        "120 questions about 30 pictures of `questions.jsonl`",
        f"| all | {point.quality.total.accuracy:.3f} |",
        f"The source has {full.total.accuracy:.3f} on the same questions",
        f"| {point.latency['qa'].decode_ms:.2f} |",
        "640×480 picture, 32 tokens asked, 8 answered",
    ):
        assert said in text
    assert knobcast("verify", out, "--level", "files").code == 0

    manifest["measured"]["quality"]["total"]["accuracy"] = "0.9"
    with pytest.raises(VerificationError, match=r"measured: quality: total: accuracy must be a number, got 0.9"):
        check_facts(manifest, read_checkpoint(out))


def test_an_export_of_the_same_setting_says_it_too(
    swept: tuple[Path, Table, Point], molmo: Path, olmoe: Path, tmp_path: Path
) -> None:
    directory, table, point = swept
    quick = ("--no-verify", "--no-onnx", "--measured", directory)
    assert knobcast("export", molmo, *KNOBS, *quick, "--out", tmp_path / "v").code == 0
    manifest = json.loads((tmp_path / "v" / "manifest.json").read_text())
    assert manifest["measured"] == json.loads(json.dumps(table.measured(point).as_dict()))
    other = knobcast("export", molmo, "--k", "1", *quick, "--out", tmp_path / "w")
    assert other.code == 1
    assert "the sweep has no setting with these knobs" in other.said
    other = knobcast("export", olmoe, "--k", "1", *quick, "--out", tmp_path / "w")
    assert other.code == 1
    assert "a sweep's settings are of one model" in other.said
    assert not (tmp_path / "w").exists()
