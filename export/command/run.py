"""`knobcast run`: an answer with onnxruntime alone."""

from pathlib import Path
from typing import Annotated

import typer

from export.command.options import Json, print_json, stderr
from transform.progress import Say
from transform.strict_json import Record


def run(
    directory: Annotated[Path, typer.Argument(help="A variant.")],
    prompt: Annotated[str, typer.Option("--prompt", help="The question.")],
    image: Annotated[Path | None, typer.Option("--image", help="A picture file.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 64,
    provider: Annotated[str, typer.Option("--provider", help="cpu, cuda or tensorrt.")] = "cpu",
    threads: Annotated[int, typer.Option("--threads", min=0, help="Of one operator; 0: all cores.")] = 0,
    member: Annotated[str | None, typer.Option("--member", help="Of a family, this decoder: k4-b12.")] = None,
    as_json: Json = False,
) -> None:
    """Answer a prompt about an image with onnxruntime alone."""
    from export.run.answer import answer

    stream: Say | None = None if as_json else lambda piece: print(piece, end="", flush=True)
    where: Record = {"provider": provider, "threads": threads, "member": member}
    given = answer(directory, image, prompt, max_new_tokens=max_new_tokens, stream=stream, **where)
    if as_json:
        print_json(given.as_dict())
    else:
        print()
        stderr.print(given.speed(), style="dim", soft_wrap=True)
