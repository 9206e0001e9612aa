"""Where commands speak: results on stdout, errors and warnings on stderr, remarks there too unless --quiet is given."""

import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress

from rich.console import Console
from rich.markup import escape

from transform.errors import WriteError

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
        print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)
    except BrokenPipeError:
        raise  # typer ends quietly
    except OSError as error:
        with suppress(OSError, ValueError):  # or the interpreter tries again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise WriteError(
            f"stdout must take the JSON object: {error.strerror or error}. What the command wrote elsewhere is "
            "complete; send stdout to another place."
        ) from error
