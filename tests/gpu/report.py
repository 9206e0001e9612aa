"""Results as lines for a terminal and as a part of docs/gpu.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FAILED = ("failed", "wrong")
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"


def as_lines(title: str, found: Mapping[str, Any]) -> list[str]:
    """One section for the terminal."""
    reason = f": {found['reason']}" if "reason" in found else ""
    lines = [f"\n{title} ({found['seconds']} s) {found['status']}{reason}"]
    width = max((len(row["what"]) for row in found["rows"]), default=0)
    for row in found["rows"]:
        mark = " " if "limit" not in row else "+" if row["passed"] else "!"
        lines.append(f"  {mark} {row['what']:<{width}}  {number(row)}{_limit(row)}")
    return lines


def number(row: Mapping[str, Any]) -> str:
    """The value with its unit."""
    value = row["value"]
    text = value if isinstance(value, str) else f"{value:g}"
    return f"{text} {row['unit']}" if row.get("unit") else text


def update_page(page: Path, results: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    """Replace what stands between the marks."""
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{markdown(results, titles)}\n{END}{after}")


def markdown(results: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """One table per section."""
    parts = []
    for name, found in results["sections"].items():
        status = found["status"] + (f": {found['reason']}" if "reason" in found else "")
        lines = [f"## {titles[name]}", "", f"{_cell(status)} ({found['seconds']} s)"]
        lines += ["", found["note"]] if "note" in found else []
        if found["rows"]:
            lines += ["", "| | | limit |", "|---|---|---|"]
        for row in found["rows"]:
            bound = f"{row['limit']:g}" + ("" if row["passed"] else " **exceeded**") if "limit" in row else ""
            lines.append(f"| {_cell(row['what'])} | {_cell(number(row))} | {bound} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _limit(row: Mapping[str, Any]) -> str:
    return f"  (limit {row['limit']:g})" if "limit" in row else ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
