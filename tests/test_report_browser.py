"""The report in a real Chromium: console, accessibility, hover, keys, sorting, filters, choices, print, no script."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.report.content import Content, read_content
from export.report.gallery import Cutting
from export.report.page import gallery_page, report_page
from tests.support.paths import ROOT
from tests.support.reports import hostile, reported_sweep

ENVIRONMENT = ROOT / ".venv-browser"
AXE = ENVIRONMENT / "node_modules" / "axe-core" / "axe.min.js"
PROGRAM = ROOT / "tests" / "programs" / "report_in_browser.py"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: install Debian's package `chromium`"),
    pytest.mark.skipif(not AXE.is_file(), reason="no axe-core in .venv-browser: `make browser-env` installs it by npm"),
    pytest.mark.skipif(not (ENVIRONMENT / "bin" / "python").is_file(), reason="no playwright: `make browser-env`"),
]
Seen = dict[str, Any]


def in_browser(page: str, folder: Path, *words: str) -> Seen:
    """What the program saw of a page."""
    (folder / "page.html").write_text(page, "utf-8")
    command = [ENVIRONMENT / "bin" / "python", PROGRAM, folder / "page.html", CHROMIUM, AXE, folder, *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found: Seen = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    return read_content(reported_sweep(tmp_path_factory.mktemp("sweep")))


@pytest.fixture(scope="module")
def seen(content: Content, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return in_browser(report_page(content), tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def acts(seen: Seen) -> Seen:
    found: Seen = seen["acts"]
    return found


@pytest.mark.parametrize("view", ["light", "dark", "phone", "phone-dark"])
def test_it_is_clean_in_every_view(seen: Seen, view: str) -> None:
    found = seen["looks"][view]
    assert found["console"] == []
    assert found["violations"] == []
    assert found["overlaps"] == []
    assert found["too_wide"] == 0
    dark = found["background"] == "rgb(15, 18, 22)"
    assert dark == view.endswith("dark")


def test_print_is_light_and_shows_everything(seen: Seen) -> None:
    assert seen["looks"]["print"] == {"console": [], "closed": 0, "controls": 0, "background": "rgb(255, 255, 255)"}


def test_hover_and_focus_say_the_knobs(content: Content, acts: Seen) -> None:
    point = content.table.point(acts["hover"]["name"])
    words = acts["hover"]["tip"].split("\n")
    assert words[0].startswith(point.name)
    told = acts["hover"]["tip"].replace("\n", " ")
    assert point.quality is not None
    for part in (f"k {point.k} ", f"blocks kept {point.blocks} ", f"nominal {point.tokens} ", f"form {point.form} "):
        assert part in told
    assert f"{100 * point.quality.total.accuracy:.1f}\N{NO-BREAK SPACE}%" in told
    assert f"{point.latency['qa'].total_ms:,.0f} ms" in told
    assert acts["escaped"] and acts["tip_on_focus"]


def test_keys_walk_by_cost_and_along_the_front(content: Content, acts: Seen) -> None:
    costs = [point.latency["qa"].total_ms for point in content.table.points]
    order = sorted(range(75), key=lambda n: costs[n])
    front = content.front(content.front_axes[0], "qa", None)
    last = order[-1]
    below = [n for n in front if costs[n] < costs[last]][-1] if last in front else front[-1]
    walked = [n for n, _ in acts["walk"]]
    assert walked == [order[0], order[1], order[2], order[1], last, below]
    assert all(content.table.points[n].name in label for n, label in acts["walk"])
    assert acts["stops"] == 1, "the plot is one stop of the tab key"
    assert acts["entered"].startswith(content.table.points[below].name) and acts["row_in_view"]


def test_sorting_is_by_the_numbers(content: Content, acts: Seen) -> None:
    shares = [point.quality.total.accuracy if point.quality else 0.0 for point in content.table.points]
    up, down = acts["sorted"]
    assert up == ["ascending", sorted(range(75), key=lambda n: (shares[n], n))]
    assert down == ["descending", sorted(range(75), key=lambda n: (-shares[n], n))]


def test_filters_hold_together_and_dim_the_plot(content: Content, acts: Seen) -> None:
    points = content.table.points
    fitting = {n for n, p in enumerate(points) if p.blocks == 12 and p.latency["qa"].total_ms <= 1500}
    assert set(acts["filtered"]) == fitting
    assert acts["status"] == f"{len(fitting)} of 75 settings"
    assert acts["dimmed"] == 75 - len(fitting)
    assert set(acts["searched"]) == {n for n in fitting if points[n].k == "4"}
    assert set(acts["front_only"]) == set(content.front(content.front_axes[0], "qa", None))


def test_choices_draw_anew(content: Content, acts: Seen) -> None:
    axis = next(axis for axis in content.front_axes if axis.key == "prefill_ms")
    front = [content.table.points[n].name for n in content.front(axis, "caption", "count")]
    assert [row.removesuffix(" (full)") for row in acts["rows"]] == front
    assert acts["caption"] == "The front by prefill latency of caption, count" and acts["tables"] == 1
    assert "prefill latency, ms" in acts["axis"]
    assert "total latency of caption, ms" in acts["columns"]
    assert not [name for name in acts["columns"] if "qa" in name or "prefill" in name]
    assert "prefill latency of caption, ms" in acts["more_columns"]
    assert acts["held"][0].endswith("5 settings") and len(acts["held"]) == 6
    assert acts["stages"].endswith("in TFLOP")
    assert acts["score_tip"].startswith("block 14")


def test_the_command_is_copied(acts: Seen) -> None:
    copied = acts["copied"]
    assert copied["clipboard"] == copied["command"]
    assert copied["command"].startswith("knobcast export synthetic --k")
    assert copied["said"].startswith("Copied the command for k")


def test_the_theme_and_the_window_can_change(acts: Seen) -> None:
    assert acts["theme"] == ["rgb(245, 246, 248)", "rgb(15, 18, 22)", "Light"]
    assert acts["resized"] == 0
    assert acts["console"] == []


def test_without_a_script_all_tables_are_there(acts: Seen) -> None:
    found = acts["without_script"]
    assert found["rows"] == 75 and found["columns"] > 30 and found["theme"] is False


def test_hostile_names_do_nothing(content: Content, tmp_path: Path) -> None:
    table = hostile(content.table)
    found = in_browser(report_page(replace(content, table=table, differences=None)), tmp_path, "look")
    assert [view["console"] for view in found["looks"].values()] == [[]] * 5


def test_a_sweep_with_gaps_is_clean(content: Content, tmp_path: Path) -> None:
    """Every third setting was measured, and not the full one."""
    points = tuple(
        point if n % 3 == 0 else replace(point, quality=None, latency={}, errors={"latency": "out of memory"})
        for n, point in enumerate(content.table.points[:-1])
    )
    full = replace(content.table.points[-1], quality=None, latency={})
    table = replace(content.table, points=(*points, full))
    found = in_browser(report_page(replace(content, table=table)), tmp_path, "look")
    for view in ("light", "phone-dark"):
        assert found["looks"][view]["console"] == found["looks"][view]["violations"] == []


def test_the_gallery_alone_is_clean(content: Content, tmp_path: Path) -> None:
    found = in_browser(gallery_page(content.pictures, Cutting((288, 432, 1008))), tmp_path, "look")
    for name, view in found["looks"].items():
        assert view["console"] == []
        if name != "print":
            assert (view["violations"], view["too_wide"]) == ([], 0)
