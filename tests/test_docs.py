"""The documentation against the tree: files that it names exist, modules are on the map, links lead somewhere."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.imports import PACKAGES
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
HOUSES = (*PACKAGES, "tests", "docs", ".ci")
NAMED = re.compile(rf"`((?:{'|'.join(map(re.escape, HOUSES))})/[\w./*-]*)`")
# Sentences that only who knows the project's past can read.
HISTORY = re.compile(r"knob documentation|the documentation's|the documentation (?:reads|says)|the issue\b")


def exists(pattern: str) -> bool:
    """A file, a folder (`search/`), or a pattern (`NAME` and `*`) that something matches."""
    return any(ROOT.glob(pattern.rstrip("/").replace("NAME", "*")))


def on_the_map(page: str) -> Iterator[str]:
    """Paths in the first cells of design.md's rows, before its first heading; one that begins in no house lies in the
    folder of that before it, or, below a line that begins with `a folder/`, in that one."""
    home = ""
    for line in page.partition("\n## ")[0].splitlines():
        if heading := re.match(r"`([\w/]+/)`", line):
            home = heading[1]
        if line.startswith("| `"):
            folder = home
            for name in re.findall(r"`([^`]+)`", line.split("|")[1]):
                if name.partition("/")[0] in HOUSES:
                    folder, name = name[: name.rstrip("/").rindex("/") + 1], name[name.rstrip("/").rindex("/") + 1 :]
                yield folder + name


def unnamed(page: str, modules: list[str]) -> list[str]:
    """Modules that no row names, neither alone nor by pattern nor by a folder that holds them."""
    rows = list(on_the_map(page))
    files = {path.relative_to(ROOT).as_posix() for row in rows if not row.endswith("/") for path in ROOT.glob(row)}
    folders = tuple(row for row in rows if row.endswith("/"))
    return [module for module in modules if module not in files and not module.startswith(folders)]


def test_the_map_names_what_is_there() -> None:
    page = (ROOT / "docs" / "design.md").read_text("utf-8")
    rows = list(on_the_map(page))
    assert {"importance/readers/answers.py", "importance/presets/", "artifacts/nano/data.py"} < set(rows)
    assert [row for row in rows if not exists(row)] == []


def test_no_merge_left_its_marks() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    marked = re.compile(r"^(?:<{7} .*|={7}|>{7} .*)$", re.MULTILINE)
    assert [page.name for page in pages if marked.search(page.read_text("utf-8"))] == []


def test_every_module_is_on_the_map() -> None:
    """A new, moved or renamed file gets its row in docs/design.md."""
    page = (ROOT / "docs" / "design.md").read_text("utf-8")
    homes = [ROOT / package for package in (*PACKAGES, "artifacts/nano")]
    modules = [p.relative_to(ROOT).as_posix() for home in homes for p in home.rglob("*.py") if p.name != "__init__.py"]
    assert unnamed(page, sorted(modules)) == []
    assert unnamed(page.replace("`plan.py`", "").replace("transform/plan.py", "transform/depth.py"), modules) == [
        "transform/plan.py"
    ]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


def test_every_page_is_reached_from_the_readme() -> None:
    seen, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.suffix == ".md" and page.exists():
            seen.add(page)
            waiting += [(page.parent / link.partition("#")[0]).resolve() for link in links(page)]
    assert set((ROOT / "docs").glob("*.md")) - seen == set()


def texts() -> Iterator[tuple[str, str]]:
    """(name, text) of the pages, and of all that users can see of the code."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.split("\0"):
        if name.endswith((".md", ".py", ".json", "Makefile")) and (ROOT / name).is_file():
            yield name, (ROOT / name).read_text("utf-8")


def test_paths_in_texts_exist() -> None:
    """In docstrings and comments as in pages; the change log may speak of the past."""
    lost = [f"{name}: {path}" for name, text in texts() for path in NAMED.findall(text) if name != "CHANGELOG.md"]
    assert [found for found in lost if not exists(found.partition(": ")[2])] == []


def test_no_sentence_needs_the_projects_past() -> None:
    here = Path(__file__).name
    assert [f"{name}: {HISTORY.findall(t)}" for name, t in texts() if HISTORY.search(t) and here not in name] == []


def test_the_readme_begins_with_two_commands() -> None:
    first = re.search(r"```console\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert first is not None
    assert [line.partition("#")[0].strip() for line in first[1].splitlines()] == [
        "make export K=4 BLOCKS=12",
        "make test",
    ]
