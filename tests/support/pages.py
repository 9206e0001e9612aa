"""An HTML page as a browser without scripts sees it: elements in order, tables as rows of texts, the data block."""

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

EMPTY = {"br", "img", "input", "link", "meta"}


@dataclass
class Element:
    """An element with its attributes, its text (that of its children too) and what it holds."""

    name: str
    attributes: dict[str, str | None]
    children: list["Element"] = field(default_factory=list)
    text: str = ""

    def all(self, name: str) -> list["Element"]:
        """Those of this name inside, in order."""
        found = [child for child in self.children if child.name == name]
        return [one for child in self.children for one in ([child] if child in found else []) + child.all(name)]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("page", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> says an attribute twice: {names}"
        made = Element(tag, dict(attrs))
        self.open[-1].children.append(made)
        if tag not in EMPTY:
            self.open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> ends <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for one in self.open:
            one.text += data


def parsed(page: str) -> Element:
    """The page's tree; every element is closed where it should be."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == [reader.root], f"never closed: {[one.name for one in reader.open[1:]]}"
    return reader.root


def rows(table: Element) -> list[dict[str, str]]:
    """A table's body: texts by the heads of the columns."""
    heads = [head.text for head in table.all("thead")[0].all("th")]
    body = table.all("tbody")[0].all("tr")
    return [dict(zip(heads, (cell.text for cell in row.children), strict=True)) for row in body]


def data(page: Element) -> Any:
    """What the script draws from."""
    return next(json.loads(one.text) for one in page.all("script") if one.attributes.get("id") == "data")
