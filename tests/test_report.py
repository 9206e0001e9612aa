"""The report without a browser: its structure, its numbers against the table, hostile names, sizes, what is missing."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from export.report.axes import significant
from export.report.content import Content, read_content
from export.report.drawing import figure
from export.report.figures import plots, write_figures
from export.report.gallery import Cutting
from export.report.page import MAX_BYTES, ReportError, report_page
from export.sweep.answers import read_answers, read_samples
from export.sweep.table import FILE, Drop, Point, Table, table_text
from tests.support.command import knobcast
from tests.support.pages import Element, data, parsed, rows
from tests.support.paths import ROOT
from tests.support.reports import HOSTILE, SCORES, hostile, reported_sweep
from tests.support.sweeps import synthetic_sweep

DROP = Drop(0.0, None, None)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def page(sweep: Path) -> Element:
    return parsed(report_page(read_content(sweep)))


def table_named(page: Element, name: str) -> Element:
    return next(one for one in page.all("table") if one.attributes.get("id") == name)


def test_the_page_is_whole_and_alone(sweep: Path, page: Element) -> None:
    text = report_page(read_content(sweep))
    assert len(text.encode()) < MAX_BYTES
    names = [str(one.attributes["id"]) for one in page.all("html")[0].children for one in [one, *everything(one)]
             if "id" in one.attributes]  # fmt: skip
    assert len(set(names)) == len(names)
    links = [value for one in everything(page) for key, value in one.attributes.items() if key in ("href", "src")]
    assert len(links) > 10
    for link in links:
        assert link is not None
        assert link.startswith("data:image/jpeg;base64,") or link.removeprefix("#") in names, link
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    headings = [one.name for one in everything(page) if one.name in ("h1", "h2", "h3")]
    assert headings[0] == "h1" and headings.count("h1") == 1 and headings.count("h2") == 6


def everything(element: Element) -> list[Element]:
    return [one for child in element.children for one in (child, *everything(child))]


def test_the_same_table_gives_the_same_bytes(sweep: Path) -> None:
    code = (
        "import sys, pathlib; from export.report.content import read_content; "
        "from export.report.page import report_page; "
        "sys.stdout.buffer.write(report_page(read_content(pathlib.Path(sys.argv[1]))).encode())"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code, sweep], cwd=ROOT, capture_output=True, env=environment)
        assert done.stdout == report_page(read_content(sweep)).encode(), done.stderr[-2000:]


def test_every_number_of_the_table_is_there(sweep: Path, page: Element) -> None:
    content = read_content(sweep)
    found = rows(table_named(page, "variants"))
    assert len(found) == len(content.table.points) == 75
    for point, row in zip(content.table.points, found, strict=True):
        assert point.quality is not None
        share, drop = point.quality.total, point.quality.drop
        assert share.interval is not None and drop.interval is not None
        qa, work = point.latency["qa"], point.cost.work["caption"]
        expected = {
            "k": point.k,
            "blocks": str(point.blocks),
            "tokens": str(point.tokens),
            "form": "cpu",
            "accuracy": f"{100 * share.accuracy:.1f}\N{NO-BREAK SPACE}%",
            "95 % interval": f"{100 * share.interval[0]:.1f} to {100 * share.interval[1]:.1f}\N{NO-BREAK SPACE}%",
            "loss to full, points": f"{100 * drop.mean:+.1f}",
            "count": f"{100 * point.quality.by_task['count'].accuracy:.1f}\N{NO-BREAK SPACE}%",
            "total latency of qa, ms": significant(qa.total_ms),
            "prefill latency of qa, ms": significant(qa.prefill_ms),
            "latency per decoded token of caption, ms": significant(point.latency["caption"].decode_ms),
            "peak memory of qa, GB": significant((qa.peak_bytes or 0) / 1e9),
            "weight bytes, GB": significant(point.cost.bytes / 1e9),
            "image features of caption, tokens": str(work.vision_tokens),
            "command": point.command,
        }
        assert {key: row[key] for key in expected} == expected
        assert row["setting"].startswith(point.name)
        assert row["setting"].endswith("full") == (point.name == content.table.full)


def test_the_script_gets_the_numbers_as_they_were_measured(sweep: Path, page: Element) -> None:
    table, found = read_content(sweep).table, data(page)
    assert found["names"] == [point.name for point in table.points]
    for at in ("qa", "caption"):
        assert found["values"][at]["total_ms"] == [point.latency[at].total_ms for point in table.points]
        assert found["spread"][at] == [list(point.latency[at].spread_ms) for point in table.points]
    assert found["values"]["qa"]["bytes"] == [point.cost.bytes for point in table.points]
    shares = [point.quality.by_task["colour"] for point in table.points if point.quality]
    assert found["accuracy"][1 + sorted(["colour", "count", "detail"]).index("colour")] == [
        [share.accuracy, *(share.interval or ())] for share in shares
    ]
    for knob in found["knobs"][:3]:
        said = [getattr(point, knob["key"]) for point in table.points]
        assert [knob["values"][n] for n in knob["at"]] == list(map(str, said))


def test_fronts_are_what_nothing_beats(sweep: Path, page: Element) -> None:
    """Independently: a point is on the front if no other is as good in both and better in one."""
    found = data(page)
    for at, by_axis in found["fronts"].items():
        for axis, by_task in by_axis.items():
            costs = found["values"][at][axis]
            for task, front in enumerate(by_task):
                shares = [share[0] for share in found["accuracy"][task]]
                free = {
                    n
                    for n, (cost, share) in enumerate(zip(costs, shares, strict=True))
                    if not any(
                        c <= cost and s >= share and (c < cost or s > share) for c, s in zip(costs, shares, strict=True)
                    )
                }
                assert set(front) == free, (at, axis, task)
                assert front == sorted(front, key=lambda n: costs[n])


def test_the_fronts_table_says_the_same(sweep: Path, page: Element) -> None:
    content = read_content(sweep)
    tables = [one for one in page.all("table") if one.all("caption")[0].text == "The front by total latency of caption"]
    axis = content.front_axes[0]
    expected = [content.table.points[n].name for n in content.front(axis, "caption", None)]
    assert [row["setting"].removesuffix("full") for row in rows(tables[0])] == expected


def test_rises_are_paired_differences(sweep: Path, page: Element) -> None:
    """Over pictures, from the answers: computed here by hand."""
    content = read_content(sweep)
    found = next(
        rows(one) for one in page.all("table") if one.all("caption")[0].text == "The front by total latency of qa"
    )
    pictures = np.array(read_samples(sweep).pictures)
    told = []
    for before, row in pairwise(found):
        ours, theirs = (
            np.array(read_answers(sweep, one["setting"].removesuffix("full"), len(pictures)).scores)
            for one in (row, before)
        )
        means = np.array([(ours - theirs)[pictures == n].mean() for n in range(pictures.max() + 1)])
        error = 1.96 * means.std(ddof=1) / len(means) ** 0.5
        told.append(abs(means.mean()) > error)
        assert row["to the one above, points"] == f"{100 * means.mean():+.1f}" + ", within the error" * (not told[-1])
    assert found[0]["to the one above, points"] == "–"
    assert set(told) == {True, False}
    assert data(page)["rises"]["qa"]["total_ms"][0][1:] == [
        [pytest.approx((content.rise(n, before, None) or DROP).mean), not told[i]]
        for i, (before, n) in enumerate(pairwise(content.front(content.front_axes[0], "qa", None)))
    ]


def test_lines_along_a_knob_hold_the_others(sweep: Path, page: Element) -> None:
    content = read_content(sweep)
    by_caption = {one.all("caption")[0].text: rows(one) for one in page.all("table")}
    found = by_caption["By blocks kept, at experts per token, k 8, vision tokens, nominal 1008, form cpu"]
    expected = {
        str(point.blocks): significant(point.latency["qa"].total_ms)
        for point in content.table.points
        if point.k == "8" and point.tokens == 1008
    }
    assert {row["blocks kept"]: row["total latency of qa, ms"] for row in found} == expected
    assert list(expected) == ["8", "10", "12", "14", "16"]


def test_scores_are_there_with_their_intervals(page: Element) -> None:
    found = next(rows(one) for one in page.all("table") if one.all("caption")[0].text == "Scores by block")
    assert [row["block"] for row in found] == [str(n) for n in range(16)]
    assert found[3] == {"block": "3", "score": "0", "interval": "-0.100 to 0.200", "kept by default": ""}
    assert found[2]["interval"] == "-0.296 to 0.0960" and found[0]["kept by default"] == "yes"


def test_names_never_become_markup(sweep: Path) -> None:
    content = read_content(sweep)
    plain = replace(content, table=replace(content.table, points=content.table.points[:3] + content.table.points[-1:]))
    pictures = tuple(replace(kept, name=HOSTILE) for kept in content.pictures)
    scores = replace(SCORES, metric=HOSTILE, unit=HOSTILE, higher_means=HOSTILE)
    evil = replace(content, table=hostile(content.table), pictures=pictures, scores=scores, differences=None)
    page = parsed(report_page(evil))
    known = {one.name for one in everything(parsed(report_page(plain)))}
    assert {one.name for one in everything(page)} <= known | {"ul"}
    assert len(page.all("script")) == 2 and page.all("img") == []
    assert not [key for one in everything(page) for key in one.attributes if key.startswith("on")]
    assert [row["setting"][: len(HOSTILE)] for row in rows(table_named(page, "variants"))] == [HOSTILE] * 4
    assert data(page)["names"][0].startswith(HOSTILE)
    assert page.all("h1")[0].text == f"{HOSTILE}: 4 settings"


def test_the_policy_allows_this_script_alone(page: Element) -> None:
    policy = next(one for one in page.all("meta") if "http-equiv" in one.attributes).attributes["content"]
    assert policy is not None
    import base64
    import hashlib

    for kind in ("script", "style"):
        text = page.all(kind)[-1].text
        assert f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy


def without(table: Table, **gone: Any) -> Table:
    return replace(table, points=tuple(replace(point, **gone) for point in table.points))


def parts(content: Content) -> list[str | None]:
    return [one.attributes.get("id") for one in parsed(report_page(content)).all("section")][1:]


def test_what_was_not_measured_is_left_out(sweep: Path) -> None:
    full = read_content(sweep)
    assert parts(full) == ["trade-off", "knobs", "time", "blocks", "tiling", "settings"]
    table = replace(without(full.table, quality=None), data=None)
    assert parts(replace(full, table=table)) == ["knobs", "time", "blocks", "tiling", "settings"]
    bare = replace(full, table=replace(without(table, latency={}), machine=None), scores=None, pictures=())
    assert parts(bare) == ["knobs", "time", "settings"]
    alone = replace(full, table=replace(full.table, points=full.table.points[-1:]))
    assert parts(alone) == ["trade-off", "time", "blocks", "tiling", "settings"]


def test_what_failed_is_said(sweep: Path) -> None:
    content = read_content(sweep)
    first: Point = replace(content.table.points[0], quality=None, errors={"quality": "out of <memory>"})
    table = replace(content.table, points=(first, *content.table.points[1:]))
    page = parsed(report_page(replace(content, table=table)))
    row = rows(table_named(page, "variants"))[0]
    assert row["accuracy"] == "–" and row["setting"] == f"{first.name}quality failed"
    assert f"{first.name}, quality: out of <memory>" in page.text
    assert all(0 not in front for by in data(page)["fronts"].values() for tasks in by.values() for front in tasks)


def test_tiers_stand_behind_numbers_and_the_source_last(sweep: Path) -> None:
    content = read_content(sweep)
    points = list(content.table.points)
    for n, tokens in enumerate(("high", None, "low")):
        points[n] = replace(points[n], tokens=tokens)
    found = replace(content, table=replace(content.table, points=tuple(points)))
    assert found.knobs[2].values == ("288", "432", "1008", "low", "high", "source")
    assert parsed(report_page(found)).text.count("low under") == 0


def test_five_hundred_settings_fit_and_more_are_refused_by_size(sweep: Path) -> None:
    content = read_content(sweep)
    some = content.table.points

    def of(count: int) -> Content:
        made = tuple(replace(some[n % 75], name=f"{n}-{some[n % 75].name}") for n in range(count))
        return replace(content, table=replace(content.table, points=made, full=made[74].name), differences=None)

    assert len(report_page(of(500)).encode()) < MAX_BYTES
    with pytest.raises(ReportError, match=r"below 2,000,000 bytes, this one has \S+ for 1,200 settings\. Sweep fewer"):
        report_page(of(1200))


def test_plots_are_files_and_the_same_twice(sweep: Path, tmp_path: Path) -> None:
    content = read_content(sweep)
    one = replace(content.table, workloads={"qa": content.table.workloads["qa"]})
    bare = replace(content, table=without(one, latency={}), scores=None)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        written = write_figures(bare, Cutting((288,)), folder)
    names = sorted(path.name for path in written)
    assert names == [f"{name}{form}" for name in ("front-bytes", "knobs", "tiling") for form in (".png", ".svg")]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    whole = replace(content, table=one, pictures=(), scores=None)
    drawn = [name for name, _, _ in plots(whole)]
    assert drawn == [*(f"front-{cost}" for cost in ("total-ms", "prefill-ms", "decode-ms", "peak-bytes", "bytes")),
                     "knobs", "time"]  # fmt: skip
    with figure(7, 4) as made:
        next(draw for name, _, draw in plots(whole) if name == "time")(made)
        bars = [bar for bar in made.axes[0].patches if isinstance(bar, Rectangle)]
        at = content.table.point(made.axes[0].get_yticklabels()[0].get_text()).latency["qa"]
        assert [bars[n * len(bars) // 3].get_bbox().width for n in range(3)] == pytest.approx(
            [at.vision_ms, at.prefill_ms, 7 * at.decode_ms]
        )


def test_the_command(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = knobcast("report", sweep, "--out", out, "--no-plots")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"wrote {out}: 75 settings, ")
    assert out.read_text("utf-8") == report_page(read_content(sweep))
    again = knobcast("report", sweep, "--out", out, "--no-plots")
    assert again.code == 1 and "pass --force" in again.said
    (tmp_path / "plots").mkdir()
    kept = knobcast("report", sweep, "--out", tmp_path / "other.html")
    assert kept.code == 1 and "--no-plots" in kept.said and not (tmp_path / "other.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (FILE, "{}", "Run the sweep again"),
        ("pictures.json", '{"schema": 1, "pictures": [{"file": "../x.jpg"}]}', "picture 0 is damaged"),
        ("pictures/0.jpg", "no picture", "picture 0 is damaged"),
        ("scores.json", "[]", "scores.json"),
        ("answers/k1-b8-t288-cpu.json", "{}", "k1-b8-t288-cpu.json"),
    ],
)
def test_damaged_files_are_named(sweep: Path, tmp_path: Path, name: str, content: str, said: str) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(sweep, directory)
    (directory / name).write_text(content)
    done = knobcast("report", directory, "--no-plots")
    assert done.code == 1 and said in done.said, done.err


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path) -> None:
    done = knobcast("report", tmp_path)
    assert done.code == 1 and "knobcast sweep" in done.said
    assert list(tmp_path.iterdir()) == []
    (tmp_path / FILE).write_text(table_text(synthetic_sweep(tmp_path)))
    assert knobcast("report", tmp_path, "--no-plots").code == 0
