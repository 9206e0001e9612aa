"""`knobcast verify`: a variant or a family is checked on its own."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from export.command.options import Json
from export.command.output import print_json, remarks


def verify(
    directory: Annotated[Path, typer.Argument(help="A variant or a family.")],
    as_json: Json = False,
) -> None:
    """Check a variant: its sums, its graphs' ranges, a fresh reload, its golden outputs."""
    from export.command.bars import progress_bars
    from export.files.integrity import check_before_torch

    check_before_torch(directory)
    from export.family.family import verify_family
    from export.gate.verify import verify_directory
    from export.run.family_file import FILE

    check = verify_family if (directory / FILE).is_file() else verify_directory
    with progress_bars(remarks, None) as (say, _):
        results = check(directory, say)
    if as_json:
        print_json({"directory": str(directory), "verification": "passed", **results})
    else:
        console = Console(highlight=False)
        console.print(f"[green]verified[/green] {escape(str(directory))}", soft_wrap=True)
        if isinstance(skipped := results.get("as_user"), str):
            console.print(f"loading it as users do was {escape(skipped)}", soft_wrap=True)
