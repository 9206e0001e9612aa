"""`knobcast pack DIR --out device.tar`: a variant with all that runs it, for a machine without an index."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from export.command.options import Json
from export.command.output import Console, print_json, remarks


def pack(
    directory: Annotated[Path, typer.Argument(help="A variant or a family.")],
    out: Annotated[Path, typer.Option("--out", help="The archive: device.tar.")],
    platform: Annotated[
        str | None, typer.Option("--platform", help="linux-x86_64 or linux-aarch64; absent: this machine's.")
    ] = None,
    python: Annotated[str | None, typer.Option("--python", help="The device's: 3.12; absent: this one's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Pack a variant with the wheels that run it, their digests and a README into one archive."""
    from export.command.bars import progress_bars
    from export.files.integrity import check_before_torch
    from export.layout.archive import Device, pack_variant

    check_before_torch(directory)
    device = Device.parse(platform, python)
    with progress_bars(remarks, None) as (say, _):
        record = pack_variant(directory, out, device, force=force, say=say)
    if as_json:
        print_json({"out": str(out), **record})
    else:
        Console(highlight=False).print(
            f"wrote {escape(str(out))}: {record['bytes']:,} bytes, {len(record['wheels'])} wheels for "
            f"{record['platform']} and Python {record['python']}",
            soft_wrap=True,
        )
