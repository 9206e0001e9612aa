"""Scores as a picture and as a table: same bytes twice, marks, whiskers, refusals."""

import io
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from export.command.show_scores import show_scores
from export.report.drawing import PlotError
from export.report.importance import heading, plot_scores, protected_blocks, whisker
from importance.scores import LESS, Scores
from transform.errors import WriteError

SCORES = Scores(
    {0: 0.3, 1: -0.1, 2: 0.05, 3: 0.2},
    metric="drop of $acc_uracy$ [bold]",
    unit="accuracy",
    stderr={1: 0.02, 2: 0.01},
    interval={2: (0.02, 0.09), 3: (0.1, 0.3)},
    samples=1234,
)


def drawn(scores: Scores, path: Path, layers: int | None = None) -> str:
    plot_scores(scores, path, layers=layers)
    return path.read_text()


def test_the_picture_is_svg_and_the_same_twice(tmp_path: Path) -> None:
    first = drawn(SCORES, tmp_path / "a.svg")
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert "<dc:date>" not in first
    code = (
        "import sys, pathlib; from export.report.importance import plot_scores; from tests.test_plot import SCORES; "
        "plot_scores(SCORES, pathlib.Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b.svg")], check=True, cwd=root)
    assert (tmp_path / "b.svg").read_text() == first


def test_png_by_its_name_and_the_same_twice(tmp_path: Path) -> None:
    for name in ("a.png", "b.PNG"):
        plot_scores(SCORES, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.PNG").read_bytes()


def test_first_and_last_are_marked_in_colour_and_hatch(tmp_path: Path) -> None:
    def hatched(picture: str) -> int:
        return len(re.findall(r"fill: url\(#", picture))

    assert hatched(drawn(SCORES, tmp_path / "a.svg")) == 3  # two bars and the legend
    assert "#e69f00" in (tmp_path / "a.svg").read_text()
    partly = Scores({1: 0.3, 2: 0.1, 3: 0.2, 4: 0.2})
    assert hatched(drawn(partly, tmp_path / "b.svg", layers=6)) == 0
    assert hatched(drawn(partly, tmp_path / "c.svg", layers=5)) == 2
    assert protected_blocks(SCORES) == {0, 3}
    assert protected_blocks(SCORES, 16) == {0, 15}
    assert protected_blocks(partly) == {0}
    assert protected_blocks(partly, 5) == {0, 4}


def test_title_and_whiskers_say_what_is_known() -> None:
    assert heading(SCORES) == (
        "drop of $acc_uracy$ [bold] (accuracy), 1,234 samples\nwhiskers: interval, else 1.96 standard errors"
    )
    assert heading(Scores({0: 1.0})) == "unknown (unknown), unknown number of samples"
    assert whisker(SCORES, 0) is None
    assert whisker(SCORES, 1) == pytest.approx((-0.1392, -0.0608), abs=1e-4)
    assert whisker(SCORES, 2) == (0.02, 0.09)


def test_a_changed_interval_changes_the_picture(tmp_path: Path) -> None:
    other = Scores({**SCORES.values}, interval={3: (0.1, 0.31)})
    same = Scores({**SCORES.values}, interval={3: (0.1, 0.3)})
    assert drawn(other, tmp_path / "a.svg") != drawn(same, tmp_path / "b.svg")


def test_one_block_and_many_blocks_are_drawn(tmp_path: Path) -> None:
    drawn(Scores({0: 0.0}), tmp_path / "one.svg")
    drawn(Scores({block: -float(block) for block in range(60)}, higher_means=LESS), tmp_path / "many.svg")


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlotError, match=r"\.svg or \.png by its name, got 'a\.pdf'"):
        plot_scores(SCORES, tmp_path / "a.pdf")
    plot_scores(SCORES, tmp_path / "a.svg")
    with pytest.raises(WriteError, match="exists"):
        plot_scores(SCORES, tmp_path / "a.svg")
    plot_scores(SCORES, tmp_path / "a.svg", force=True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotError, match=r'pip install -e "\.\[plot\]"'):
        plot_scores(SCORES, tmp_path / "b.svg")


def table(scores: Scores) -> list[str]:
    out = io.StringIO()
    show_scores(scores, Console(file=out, width=120))
    return out.getvalue().splitlines()


def test_the_table_has_score_interval_bar_and_rank() -> None:
    lines = table(SCORES)
    assert lines[0].startswith("drop of $acc_uracy$ [bold] (accuracy), 1,234 samples")
    rows = {line.split()[-1]: line for line in lines if line.split() and line.split()[-1] in "1234"}
    assert rows["1"].split() == ["*", "0", "0.3", "█" * 20, "1"]
    assert rows["2"].split() == ["*", "3", "0.2", "0.1", "to", "0.3", "█" * 13, "2"]
    assert rows["4"].split()[:2] == ["1", "-0.1"]
    assert "░" * 7 in rows["4"]
    assert lines[-1] == "higher = more important; * kept by default"


def test_rank_one_is_the_most_important_whichever_way_the_scores_run() -> None:
    lines = table(Scores({1: 0.5, 2: -0.5, 3: -0.5}, higher_means=LESS))
    ranks = [line.split()[-1] for line in lines if line.split() and line.split()[-1] in "123"]
    assert ranks == ["3", "1", "2"]
    assert table(Scores({1: 0.0}))
