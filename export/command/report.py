"""`knobcast report DIR`: what a sweep measured, as one page that works from disk."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from export.command.options import Json
from export.command.output import Console, print_json


def report(
    directory: Annotated[Path, typer.Argument(help="The --out of a finished `knobcast sweep`.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page; default: DIR/report.html.")] = None,
    plots: Annotated[
        bool, typer.Option("--plots/--no-plots", help="Every plot as SVG and PNG too, in plots/ beside the page.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing report.")] = False,
    as_json: Json = False,
) -> None:
    """Write a sweep's report: one HTML file with plots, tables and the tiling of pictures; no network, no model."""
    from export.report.write import write_report

    record = write_report(directory, out, plots=plots, force=force)
    if as_json:
        print_json(record)
        return
    console = Console(highlight=False)
    console.print(f"wrote {escape(record['report'])}: {record['settings']:,} settings, {record['bytes']:,} bytes",
                  soft_wrap=True)  # fmt: skip
    if record["failed"]:
        console.print(f"  {record['failed']:,} of them failed in part: the page says which and why", style="dim")
    if record["plots"]:
        folder = Path(record["plots"][0]).parent
        console.print(f"  {len(record['plots'])} plots in {escape(str(folder))}", style="dim", soft_wrap=True)
