"""`knobcast layout DIR --for RUNTIME`: a variant under the names and in the places another runtime looks for."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from export.command.options import PROVIDER_WORDS, Json
from export.command.output import Console, print_json, remarks
from transform.strict_json import Record


def layout(
    directory: Annotated[Path, typer.Argument(help="A variant or a family.")],
    runtime: Annotated[str, typer.Option("--for", help="transformers.js or triton.")],
    out: Annotated[Path | None, typer.Option("--out", help="Default: DIR-RUNTIME, beside the variant.")] = None,
    member: Annotated[str | None, typer.Option("--member", help="Of a family, this decoder: k4-b12.")] = None,
    provider: Annotated[str | None, typer.Option("--provider", help=f"For triton: {PROVIDER_WORDS}.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing layout.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Lay a variant out for another runtime: its graphs with the bytes they read, and that runtime's configuration."""
    from export.command.bars import progress_bars
    from export.layout.write import plan_layout, write_layout

    made = plan_layout(directory, runtime, member=member, provider=provider)
    given = directory.resolve()
    target = out or given.with_name(f"{given.name}-{runtime}")
    record: Record = {**made.as_dict(), "out": str(target)}
    if not dry_run:
        with progress_bars(remarks, made.nbytes) as (say, progress):
            record |= write_layout(made, target, force=force, say=say, progress=progress)
    if as_json:
        print_json(record)
    else:
        _show(record, dry_run, Console(highlight=False))


def _show(record: Record, dry_run: bool, console: Console) -> None:
    verb = "would write" if dry_run else "wrote"
    named = escape(f"{record['out']}: {record['variant']} for {record['layout']}")
    console.print(f"{verb} {named}", soft_wrap=True)
    for graph in record["graphs"]:
        source = escape(graph["from"])
        console.print(f"  {graph['graph']}: {source}, {graph['weight_bytes']:,} bytes of weights", style="dim")
    moved = ", ".join(f"{count:,} by {way}" for way, count in record.get("ways", {}).items())
    if moved:
        console.print(f"  {moved}", style="dim")
