"""HTML from values: every text is escaped here, once, for names come from users. Nothing else in the page escapes."""

import html
import json
from collections.abc import Iterable
from typing import TypeAlias

EMPTY = ("br", "img", "input", "link", "meta")


class Html(str):
    """Markup that is safe as it stands; a plain `str` is text."""


Inside: TypeAlias = str | Iterable["Inside"]


def text(*inside: Inside) -> Html:
    """Markup as it is, plain strings escaped, lists in their order."""
    return Html("".join(_flat(inside)))


def tag(name: str, /, *inside: Inside, **attributes: str | int | float | bool | None) -> Html:
    """<name attributes>inside</name>.

    An attribute's name may end in `_` (`class_`) and has `_` for `-`; True stands without a value, None and False are
    left out.
    """
    said = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{said}>" if name in EMPTY else f"<{name}{said}>{text(*inside)}</{name}>")


def data_block(name: str, value: object) -> Html:
    """A JSON block for the script; no text inside can end it or begin a comment."""
    content = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        content = content.replace(sign, f"\\u{ord(sign):04x}")
    return Html(f'<script type="application/json" id="{html.escape(name)}">{content}</script>')


def _flat(inside: Iterable[Inside]) -> Iterable[str]:
    for one in inside:
        if isinstance(one, Html):
            yield one
        elif isinstance(one, str):
            yield html.escape(one)
        else:
            yield from _flat(one)
