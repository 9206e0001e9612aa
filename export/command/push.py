"""`knobcast push DIR TO`: a variant or a family into a registry, read back there, then named by an alias."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from export.command.options import Json
from export.command.output import Console, print_json, remarks, say_note
from export.publish.publisher import Transfer
from transform.strict_json import Record


def push(
    directory: Annotated[Path, typer.Argument(help="A variant or a family.")],
    to: Annotated[
        str,
        typer.Argument(
            help="dir:FOLDER, oci://HOST/REPOSITORY, hf:OWNER/NAME, mlflow://HOST:PORT/NAME, s3://BUCKET/PREFIX, "
            "or a store that fsspec knows; logins stay where their clients keep them."
        ),
    ],
    alias: Annotated[
        str | None, typer.Option("--alias", help="A name that moves to this version once it is confirmed: edge-prod.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would move and what is there, and stop.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Where what is new is private otherwise: everyone may see it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish a variant: only what the registry lacks moves, and what was written is read back."""
    from export.command.bars import progress_bars
    from export.publish.content import read_content
    from export.publish.publisher import check_alias, publish
    from export.publish.targets import open_target

    publisher = open_target(to, public)
    if alias is not None:
        check_alias(alias)  # before files are read, which may take minutes
    transfer = publisher.plan(read_content(directory, lambda step: say_note(f"… {step}")), alias)
    record = transfer.as_dict()
    if not dry_run:
        try:
            with progress_bars(remarks, transfer.bytes) as (say, progress):
                receipt = publish(publisher, transfer, say, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("what arrived stays and isn't sent again, no alias was moved") from None
        record |= {"reference": receipt.reference, "registry_digest": receipt.digest, "confirmed": True}
    if as_json:
        print_json(record)
    else:
        _show(transfer, record, Console(highlight=False))


def _show(transfer: Transfer, record: Record, console: Console) -> None:
    content, moving = transfer.content, transfer.moving
    done = "reference" in record
    console.print(f"{'pushed' if done else 'would push'} {escape(content.name)} {content.version}", soft_wrap=True)
    for item in moving:
        console.print(f"  {escape(item.path)}: {item.size:,} bytes", style="dim", soft_wrap=True)
    rest = "; the others are there already" if len(moving) < len(content.items) else ""
    console.print(
        f"{'moved' if done else 'would move'} {transfer.bytes:,} of {content.bytes:,} bytes, {len(moving)} of "
        f"{len(content.items)} files{rest}",
        soft_wrap=True,
    )
    if done:
        console.print(f"[green]confirmed[/green] {escape(record['reference'])}", soft_wrap=True)
    if transfer.alias is not None:
        console.print(f"alias {transfer.alias} {'names it' if done else 'would name it'}", soft_wrap=True)
