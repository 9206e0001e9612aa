"""`knobcast pull FROM OUT`: a version of a variant back from a registry, checked before it appears."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from export.command.options import Json
from export.command.output import Console, print_json, remarks


def pull(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="FROM",
            help="A version or an alias where push put it: dir:FOLDER/ALIAS, oci://HOST/REPOSITORY:ALIAS, "
            "hf:OWNER/NAME@ALIAS, mlflow://HOST:PORT/NAME/ALIAS, s3://BUCKET/PREFIX/ALIAS.",
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The directory to make.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing variant.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a published variant or family; it appears whole and checked, or not at all."""
    from export.command.bars import progress_bars
    from export.publish.publisher import pull as pull_version
    from export.publish.targets import open_target
    from transform.stage import check_target

    check_target(out, force, called="OUT")
    publisher = open_target(reference)
    with progress_bars(remarks, None) as (say, progress):
        record = pull_version(publisher, reference, out, force=force, say=say, tick=progress)
    if as_json:
        print_json(record)
        return
    console = Console(highlight=False)
    console.print(f"[green]pulled[/green] {escape(str(out))}: {record['files']} files by their sums", soft_wrap=True)
    console.print(f"check it with the model: knobcast verify {escape(str(out))}", style="dim", soft_wrap=True)
