"""Where commands speak: results on stdout, errors and warnings on stderr, remarks there too unless --quiet is given."""

import json
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress

from rich import console
from rich.markup import escape
from rich.style import Style
from rich.text import Text

from transform.errors import WriteError

_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all controls but tabs and ends of lines


def tame(text: str) -> str:
    """A text without what would steer a terminal: names in files of others and answers of models go there."""
    return _STEERING.sub("\ufffd", text)


class Console(console.Console):
    """Rich's, which shows what others wrote as it is told and obeys none of it."""

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: console.JustifyMethod | None = None,
        overflow: console.OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: console.HighlighterType | None = None,
    ) -> Text:
        """Every text comes by here, also the cells of tables."""
        return super().render_str(
            tame(text), style=style, justify=justify, overflow=overflow, emoji=emoji, markup=markup,
            highlight=highlight, highlighter=highlighter,
        )  # fmt: skip


stderr = Console(stderr=True, highlight=False)  # errors and warnings
remarks = Console(stderr=True, highlight=False)  # progress and all that may be left out


def be_quiet(quiet: bool) -> None:
    """What --quiet does, and its absence undoes: no remarks."""
    remarks.quiet = quiet


def say_note(text: str) -> None:
    """One line on stderr about what was done with what was given."""
    remarks.print(escape(text), style="dim", soft_wrap=True)


def show_warnings(warnings: Iterable[str], console: Console = stderr) -> None:
    """A line each."""
    for warning in warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)


def print_json(value: object) -> None:
    """One object on stdout; raises WriteError where nothing takes it."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False)
        print(_STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text), flush=True)
    except BrokenPipeError:
        raise  # typer ends quietly
    except OSError as error:
        with suppress(OSError, ValueError):  # or the interpreter tries again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise WriteError(
            f"stdout must take the JSON object: {error.strerror or error}. What the command wrote elsewhere is "
            "complete; send stdout to another place."
        ) from error
