"""The command line: `knobcast export|plan|verify|run|…`. A module per verb, each a few lines around one function.

`--json` prints one JSON object on stdout; progress and messages go to stderr. Nothing here imports torch.
"""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from export.command.bench import bench
from export.command.calibrate import calibrate
from export.command.derive import derive
from export.command.evaluate import evaluate
from export.command.export import export, plan
from export.command.groups import flat
from export.command.layout import layout
from export.command.merge import merge
from export.command.once import CommandLineError, OnceCommand
from export.command.output import stderr
from export.command.pack import pack
from export.command.pick import pick
from export.command.pull import pull
from export.command.push import push
from export.command.report import report
from export.command.run import run
from export.command.score import ScoreCommand, score
from export.command.search import search
from export.command.share import share
from export.command.sign import sign
from export.command.sweep import sweep
from export.command.tile import tile
from export.command.verify import verify
from transform.errors import KnobcastError
from transform.extras import missing

HELP = """Fixed, verified, smaller variants of mixture-of-experts checkpoints, with ONNX graphs.

`--json` prints one JSON object on stdout; progress and messages go to stderr.
"""

_NO_PATH = (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP)  # a name that can't even be asked for
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=HELP)
for verb in (
    plan, export, verify, sign, run, evaluate, score, search, share, merge, sweep, pick, report, tile, derive, bench,
    calibrate, layout, pack, push, pull,
):  # fmt: skip
    app.command(cls=ScoreCommand if verb is score else OnceCommand)(flat(verb))


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # takes longer to import than a plan to make

        print(f"knobcast {version('knobcast')}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """The options before a verb; the help text is the program's."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """One message on stderr for everything knobcast refuses, and an exit code: 2 for a command line that can't be read,
    1 for what can't be done, 130 for Ctrl-C."""
    try:
        yield
    except CommandLineError as error:
        _refuse(error, 2)
    except KnobcastError as error:
        _refuse(error)
    except BaseException as error:
        if (ended := _interrupted(error)) is not None:
            stderr.print(f"interrupted; {escape(str(ended)) or 'nothing was written'}", soft_wrap=True)
            sys.exit(130)
        if isinstance(error, ModuleNotFoundError) and (said := missing(error)):
            _refuse(said)
        if isinstance(error, MemoryError):
            _refuse(
                "a process must have the memory that model and graphs ask for, this hasn't. Free some or allow more."
            )
        if isinstance(error, OSError) and error.filename is not None and error.errno in _NO_PATH:
            _refuse(f"{error.filename}: cannot be looked at ({error.strerror}). Check the path.")
        if not isinstance(error, ValueError):
            raise
        # the travelling files have errors of their own; importing them takes longer than most commands
        from transform.molmoe.preprocessing import ImageError
        from transform.molmoe.tiling import BudgetError

        if not isinstance(error, BudgetError | ImageError):
            raise
        _refuse(error)


def _interrupted(error: BaseException | None) -> KeyboardInterrupt | None:
    """Ctrl-C as it arrives here: typer makes an exit code of it, and some imports an error of their own. A verb that
    leaves something says so in its text."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error


def _refuse(error: object, code: int = 1) -> NoReturn:
    stderr.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
    sys.exit(code)


def main() -> None:
    """Entry point of the console script."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
