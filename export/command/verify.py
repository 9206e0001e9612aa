"""`knobcast verify`: a variant or a family is checked on its own."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from export.command.options import Json
from export.command.output import Console, print_json, remarks
from transform.errors import VerificationError
from transform.extras import missing
from transform.ownership import SIGNATURE
from transform.progress import Say
from transform.strict_json import Record


class Level(StrEnum):
    """How much is checked."""

    FILES = "files"
    FULL = "full"


def verify(
    directory: Annotated[Path, typer.Argument(help="A variant or a family.")],
    level: Annotated[
        Level, typer.Option("--level", help="files: sums, facts and graphs' ranges alone, without torch.")
    ] = Level.FULL,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="PEM; the variant must be signed with its private key.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a variant: its sums and facts, its signature, its graphs' ranges, a fresh reload, its golden outputs."""
    from export.command.bars import progress_bars
    from export.files.check import check_files
    from export.files.integrity import NONE, check_before_torch
    from export.files.signature import check_signature

    check_before_torch(directory)
    check, signed = (check_files if level is Level.FILES else _check_all), NONE
    with progress_bars(remarks, None) as (say, _):
        if public_key is not None:  # first: what isn't signed needn't be computed
            say("signature")
            signed = check_signature(directory, public_key)
        results = check(directory, say, signed)
    if public_key is not None:
        results["signed_files"] = len(signed)
    elif (directory / SIGNATURE).is_file():
        results["signature"] = "not checked: no --public-key was given"
    if as_json:
        print_json({"directory": str(directory), "verification": "passed", "level": level.value, **results})
        return
    console = Console(highlight=False)
    console.print(f"[green]verified[/green] {escape(str(directory))}", soft_wrap=True)
    if level is Level.FILES:
        ranges = sum(results["graph_ranges"].values())
        console.print(
            f"{results['files']} files by their sums, {results['facts']} facts, {ranges} ranges of weights in "
            f"{len(results['graph_ranges'])} graphs; no model was computed",
            soft_wrap=True,
        )
    if public_key is not None:
        console.print(f"{len(signed)} files as {escape(public_key.name)}'s owner signed them", soft_wrap=True)
    elif "signature" in results:
        console.print(f"the signature was {results['signature']}", soft_wrap=True)
    if isinstance(skipped := results.get("as_user"), str):
        console.print(f"loading it as users do was {escape(skipped)}", soft_wrap=True)


def _check_all(directory: Path, say: Say, known: Mapping[str, str]) -> Record:
    """Raises VerificationError where what computes a model isn't installed."""
    from export.run.family_file import FILE

    try:
        if (directory / FILE).is_file():
            from export.family.family import verify_family

            return verify_family(directory, say, known)
        from export.gate.verify import verify_directory

        return verify_directory(directory, say, known)
    except ModuleNotFoundError as error:
        if said := missing(error):
            raise VerificationError(f"{said} Or check the files alone, with --level files.") from error
        raise
