"""The page: one HTML file with its styles, its script and its data, that loads nothing from anywhere.

The same content gives the same bytes. A policy in the page lets only this script run, so that markup in a name, were it
ever taken for markup, could do nothing.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path

from export.report import sections
from export.report.content import Content
from export.report.gallery import Cutting, gallery, legend
from export.report.markup import Html, Inside, data_block, tag
from export.report.opening import cards, facts
from export.report.script_data import script_data
from export.sweep.pictures import Kept
from transform.errors import KnobcastError

MAX_BYTES = 2_000_000
HERE = Path(__file__).parent
SCRIPTS = ("theme.js", "draw.js", "scatter.js", "plots.js", "table.js", "report.js")
PARTS = (
    ("trade-off", "Trade-off"),
    ("knobs", "Knobs"),
    ("time", "Time"),
    ("blocks", "Blocks"),
    ("tiling", "Tiling"),
    ("settings", "Settings"),
)


class ReportError(KnobcastError):
    """A report that can't be made."""


def report_page(content: Content, cutting: Cutting | None = None) -> str:
    """The whole report; ReportError where it isn't below 2 MB."""
    table = content.table
    cutting = cutting or Cutting(sections.sweep_budgets(content))
    parts = [
        sections.trade_off(content),
        sections.by_knob(content),
        sections.stages(content),
        sections.importance(content),
        sections.tilings(content, cutting),
        sections.settings(content),
    ]
    there = [(name, label) for name, label in PARTS if any(part.startswith(f'<section id="{name}"') for part in parts)]
    heading = f"{table.source.name}: {len(table.points)} settings"
    without = tag(
        "noscript", tag("p", "Plots need the script of this page; every table is there without.", class_="note")
    )
    opening = tag("section", facts(content), cards(content), without, aria_label="What was measured")
    page = _page(heading, there, [opening, *parts], data_block("data", script_data(content)), SCRIPTS)
    size = len(page.encode())
    if size > MAX_BYTES:
        raise ReportError(
            f"a report must stay below {MAX_BYTES:,} bytes, this one has {size:,} for {len(table.points):,} settings. "
            "Sweep fewer of them at once."
        )
    return page


def gallery_page(pictures: tuple[Kept, ...], cutting: Cutting) -> str:
    """The tiling gallery alone."""
    policy = tag("p", f"Here: resize {cutting.resize}, tiling by the {cutting.rule} rule.", class_="note")
    shown = (sections.tiling_note(), policy, legend(), gallery(pictures, cutting))
    part = sections.section("tiling", "Tiles, overlap and padding", *shown)
    page = _page("How pictures are cut", [], [part], Html(""), ("theme.js",))
    size = len(page.encode())
    if size > MAX_BYTES:
        raise ReportError(
            f"a gallery must stay below {MAX_BYTES:,} bytes, this one has {size:,} for {len(pictures)} pictures. "
            "Give fewer of them at once."
        )
    return page


def _page(
    heading: str, parts: list[tuple[str, str]], inside: list[Inside], data: Html, scripts: tuple[str, ...]
) -> str:
    style, script = _asset("style.css"), "".join(map(_asset, scripts))
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'"
        "; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{heading} – knobcast"),
        tag("style", Html(style)),
    )
    links = tag("ul", [tag("li", tag("a", label, href=f"#{name}")) for name, label in parts])
    top = tag(
        "header",
        tag("div", tag("h1", heading), tag("button", "Dark", id="theme", type="button", hidden=True), class_="title"),
        *([tag("nav", links, aria_label="Parts of the report")] if parts else []),
    )
    body = tag(
        "body",
        tag("a", "Skip to the content", href="#content", class_="skip"),
        top,
        tag("main", *inside, id="content"),
        tag("footer", tag("p", "Written by knobcast. Everything is in this file.")),
        data,
        tag("script", Html(script)),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


@cache
def _asset(name: str) -> str:
    return (HERE / name).read_text("utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
