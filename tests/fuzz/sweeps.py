"""What a sweep's folder holds: the table, answers and pictures read as they are, and a whole report of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from export.report.content import read_content
from export.report.page import report_page
from export.sweep.answers import FOLDER as ANSWERS
from export.sweep.answers import SAMPLES
from export.sweep.constraints import LATENCY
from export.sweep.difference import Differences
from export.sweep.lookup import make_lookup
from export.sweep.pick import pick
from export.sweep.pictures import FILE as PICTURES
from export.sweep.pictures import read_pictures
from export.sweep.table import FILE, read_table, table_text
from export.sweep.timings import read_timings
from tests.fuzz.mutate import in_bytes, in_json
from tests.fuzz.target import Target, of_rows, put
from tests.support.bench_records import bench_record
from tests.support.paths import FIXTURES
from tests.support.reports import reported_sweep

ONE, OTHER = 0, 1  # settings of the short table


def sweep_targets(folder: Path) -> tuple[Target, ...]:
    """Readers alone have a short table, for which a run takes a hundredth of a report's time."""
    folder.mkdir()
    whole = folder / "sweep"
    whole.mkdir()
    reported_sweep(whole)
    short, seen, shown = (Path(shutil.copytree(whole, folder / name)) for name in ("short", "pictures", "picture"))
    table = read_table(whole)
    kept = {point.name: point for point in (*table.points[:3], table.point(table.full))}
    (short / FILE).write_text(table_text(replace(table, points=tuple(kept.values()))))
    one, other = list(kept)[:2]
    answers = f"{ANSWERS}/{one}.json"
    picture = shown / "pictures" / "0.jpg"

    def chosen(data: bytes) -> object:
        found = read_table(put(short / FILE, data).parent)
        at = next(iter(found.workloads), None)
        return pick(found, [], None), make_lookup(found, LATENCY, at)

    def compared(file: str, data: bytes) -> object:
        before = (short / file).read_bytes()
        put(short / file, data)
        try:
            return Differences(short).between(one, other)
        finally:
            put(short / file, before)

    records = {name: (short / name).read_bytes() for name in (SAMPLES, answers)}
    return (
        Target("sweep", ((whole / FILE).read_bytes(),), in_json,
               lambda data: _reported(put(whole / FILE, data).parent)),
        Target("sweep's pictures", ((seen / PICTURES).read_bytes(),), in_json,
               lambda data: _reported(put(seen / PICTURES, data).parent)),
        Target("sweep's picture", (picture.read_bytes(),), in_bytes,
               lambda data: _reported(put(picture, data).parents[1])),
        Target("table of a sweep", ((short / FILE).read_bytes(),), in_json, chosen),
        Target("bench record", (json.dumps(bench_record(FIXTURES)).encode(),), in_json,
               lambda data: read_timings([put(folder / "bench.json", data)])),
        of_rows("answers of a sweep", records, lambda _: in_json, compared),
        Target("pictures of a sweep", ((seen / PICTURES).read_bytes(),), in_json,
               lambda data: read_pictures(put(seen / PICTURES, data).parent)),
        Target("picture of a sweep", (picture.read_bytes(),), in_bytes,
               lambda data: read_pictures(put(picture, data).parents[1])),
    )  # fmt: skip


def _reported(directory: Path) -> object:
    return report_page(read_content(directory))
