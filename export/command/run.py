"""`knobcast run`: an answer with onnxruntime alone."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from export.command.options import Json, Preprocess, Provider
from export.command.output import print_json, say_note, tame
from transform.errors import KnobcastError
from transform.progress import Say


@dataclass(frozen=True)
class Place:
    """Where a variant runs, what cuts its pictures, and which decoder of a family."""

    provider: Provider = "cpu"
    threads: Annotated[int, typer.Option("--threads", min=0, help="Of one operator; 0: all cores.")] = 0
    preprocess: Preprocess = None
    member: Annotated[str | None, typer.Option("--member", help="Of a family, this decoder: k4-b12.")] = None


def run(
    directory: Annotated[Path, typer.Argument(help="A variant, or a family with or without --member.")],
    prompt: Annotated[str, typer.Option("--prompt", help="The question.")],
    place: Place,
    image: Annotated[Path | None, typer.Option("--image", help="A picture file.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 64,
    as_json: Json = False,
) -> None:
    """Answer a prompt, about a picture or none, with onnxruntime alone."""
    from export.run.answer import answer
    from export.run.family_file import FILE, read_family

    if place.member is None and (directory / FILE).is_file():
        with suppress(KnobcastError):  # a remark alone: what runs doesn't need the family's record
            names = ", ".join(member.name for member in read_family(directory).members)
            say_note(f"this runs the family's own graph, text.onnx, with all of the model; --member takes {names}")
    stream: Say | None = None if as_json else lambda piece: print(tame(piece), end="", flush=True)
    given = answer(
        directory, image, prompt, max_new_tokens, stream=stream,
        provider=place.provider, threads=place.threads, member=place.member, preprocess=place.preprocess,
    )  # fmt: skip
    if as_json:
        print_json(given.as_dict())
    else:
        print()
        say_note(given.speed())
