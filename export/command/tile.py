"""`knobcast tile IMAGE…`: how pictures are cut under budgets of vision tokens, drawn on them. No model is needed."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from export.command.options import Json
from export.command.output import Console, print_json
from transform.errors import KnobError
from transform.knobs import parse_tokens
from transform.strict_json import Record

BUDGETS = "288,432,720,1008"


def tile(
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
    tokens: Annotated[
        str, typer.Option("--tokens", help="Budgets to compare: multiples of 144 from 288 up, low, medium, high.")
    ] = BUDGETS,
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("tiling.html"),
    resize: Annotated[str, typer.Option("--resize", help="pad (letterbox) or fill (cover and crop).")] = "pad",
    rule: Annotated[
        str, typer.Option("--rule", help="Tiling: canvas (the shape it fills) or linear (columns/rows).")
    ] = "canvas",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing page.")] = False,
    as_json: Json = False,
) -> None:
    """Draw the tiles of pictures under each budget, with overlap, padding, nominal and real token counts."""
    from export.report.gallery import Cutting
    from export.report.write import write_gallery

    cutting = Cutting(_budgets(tokens), resize, rule)
    record = write_gallery(images, cutting, out, force=force)
    if as_json:
        print_json(record)
    else:
        _show(record, Console(highlight=False))


def _budgets(words: str) -> tuple[int | str, ...]:
    found = tuple(budget for word in words.split(",") if (budget := parse_tokens(word.strip())) is not None)
    if len(set(found)) != len(words.split(",")):
        raise KnobError(f"--tokens takes different budgets, with commas between them, got {words[:80]!r}.")
    return found


def _show(record: Record, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("picture", "budget", "tiles", "nominal", "real", "positions", "padding"):
        table.add_column(name, justify="left" if name == "picture" else "right")
    for picture in record["pictures"]:
        name = f"{picture['name']} ({picture['width']}×{picture['height']})"
        for one in picture["budgets"]:
            rows, columns = one["tiling"]
            table.add_row(
                escape(name), str(one["budget"]), f"{rows}×{columns}", f"{one['nominal_tokens']:,}",
                f"{one['image_features']:,}", f"{one['positions']:,}", f"{one['padding']:.1%}",
            )  # fmt: skip
            name = ""
    console.print(table)
    console.print(f"wrote {escape(record['gallery'])}", soft_wrap=True)
