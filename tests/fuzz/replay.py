"""A list of answers, recorded and then changed, as a connection could bring each of them to a client of ours."""

import json
from collections.abc import Callable
from typing import NamedTuple


class Said(NamedTuple):
    """One answer: what a server can say of itself, whatever the list holds."""

    status: int
    headers: list[tuple[str, str]]  # a line of latin-1 each
    body: bytes


def replay(data: bytes) -> Callable[[], Said | None]:
    """The list's answers, one at every call; None: nothing comes, and never again behind the last one."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        tree = [{"status": 200, "headers": {}, "body": data.decode("latin-1")}]
    answers = iter(tree if isinstance(tree, list) else [tree])
    return lambda: said(next(answers, None))


def said(entry: object) -> Said | None:
    """An entry of such a list; None where it has no status."""
    found = entry if isinstance(entry, dict) else {}
    status, headers, body = (found.get(name) for name in ("status", "headers", "body"))
    if type(status) is not int or not 100 <= status < 1000:
        return None
    lines = [(_line(name), _line(value)) for name, value in headers.items()] if isinstance(headers, dict) else []
    text = body if isinstance(body, str) else json.dumps(body)
    return Said(status, lines, text.encode("utf-8", "surrogatepass"))


def _line(value: object) -> str:
    """As a header can bring it; clients read no further than the end of a line, and none takes a zero."""
    return str(value).encode("latin-1", "replace").decode("latin-1").translate({0: " ", 10: " ", 13: " "})
