"""A sweep with all that a report can show, and one whose every text tries to be markup."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from export.sweep.pictures import keep_pictures
from export.sweep.table import Share, Table
from importance.samples import Sample
from importance.scores import Scores, write_scores
from tests.support.sweeps import synthetic_sweep

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;<!--</script>'`\u2028"
SHARE = Share(0.5, None, None, 2)
SCORES = Scores({n: (n - 3) / 10 for n in range(16)}, unit="accuracy", stderr={2: 0.1}, interval={3: (-0.1, 0.2)})


def reported_sweep(directory: Path) -> Path:
    """Write a finished sweep with scores and two pictures beside it."""
    synthetic_sweep(directory)
    write_scores(SCORES, directory / "scores.json")
    samples = []
    for name, size in (("wide.png", (640, 300)), ("tall.png", (300, 640)), ("wide too.png", (320, 150))):
        Image.new("RGB", size, (200, 30, 30)).save(directory / name)
        samples.append(Sample(name, (str(directory / name),), "What is it?"))
    keep_pictures(samples, directory, most=2)
    return directory


def hostile(table: Table) -> Table:
    """Every text of a table that users or their files can choose."""
    points = tuple(
        replace(
            point,
            name=HOSTILE + point.name,
            command=HOSTILE + point.command,
            k=HOSTILE,
            form=HOSTILE,
            dtype=HOSTILE,
            errors={HOSTILE: HOSTILE},
            quality=point.quality and replace(point.quality, by_task={HOSTILE: SHARE, "b": SHARE}),
            latency={HOSTILE + at: one for at, one in point.latency.items()},
            cost=replace(point.cost, work={HOSTILE + at: one for at, one in point.cost.work.items()}),
        )
        for point in table.points[:3] + table.points[-1:]
    )  # fmt: skip
    assert table.data is not None
    return replace(
        table,
        source=replace(table.source, name=HOSTILE),
        data=replace(table.data, name=HOSTILE, task=HOSTILE),
        workloads={HOSTILE + at: one for at, one in table.workloads.items()},
        grid=HOSTILE,
        chosen_by=HOSTILE,
        full=HOSTILE + table.full,
        machine={"cpu": HOSTILE, "threads": 2, "versions": {"onnxruntime": HOSTILE}},
        points=points,
    )
