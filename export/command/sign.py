"""`knobcast sign`: a signature beside a variant's files, by a private key that stays where it is."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from export.command.options import Json
from export.command.output import Console, print_json, remarks
from transform.errors import KnobError
from transform.extras import lacking


def sign(
    directory: Annotated[Path, typer.Argument(help="A variant or a family.")],
    private_key: Annotated[Path, typer.Option("--private-key", help="PEM of an elliptic curve key.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing signature.")] = False,
    as_json: Json = False,
) -> None:
    """Sign a variant with your own key, without a network; its files are checked first."""
    from export.command.bars import progress_bars
    from export.files.check import check_files
    from export.files.integrity import check_before_torch
    from export.files.signature import sign as sign_files

    if find_spec("model_signing") is None:  # before gigabytes are hashed
        raise KnobError(lacking("model_signing"))
    check_before_torch(directory)
    with progress_bars(remarks, None) as (say, _):
        results = check_files(directory, say)
        say("signature")
        made = sign_files(directory, private_key, force)
    if as_json:
        print_json({"directory": str(directory), "signature": made.name, **results})
        return
    console = Console(highlight=False)
    console.print(f"[green]signed[/green] {escape(str(made))}", soft_wrap=True)
    console.print(
        f"check it: knobcast verify {escape(str(directory))} --public-key KEY.pub", soft_wrap=True, style="dim"
    )
