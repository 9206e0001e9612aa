"""Ids of the tokens with a role: begin and end of text, the image's stream. Needs no tokenizer library."""

from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

from transform.architectures import Prompt, Special, shown
from transform.checkpoint import Checkpoint
from transform.errors import CheckpointError
from transform.strict_json import MAX_TABLE_BYTES, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ImageTokens(NamedTuple):
    """The ids of the image stream."""

    start: int
    end: int
    patch: int
    column: int


def added_tokens(directory: Path) -> dict[str, int]:
    """The added tokens of a directory's tokenizer.json; none without that file."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return {}
    listed = read_json(path, MAX_TABLE_BYTES).get("added_tokens")
    found = {}
    for token in listed if isinstance(listed, list) else () if listed is None else (listed,):
        if not isinstance(token, dict) or type(token.get("content")) is not str or not _is_id(token.get("id")):
            raise CheckpointError(
                f"tokenizer.json: an added token has a content, which is a text, and an id, a whole number from 0, got "
                f"{shown(token)}. Get it again."
            )
        found[token["content"]] = token["id"]
    return found


def image_token_ids(checkpoint: Checkpoint, directory: Path) -> ImageTokens:
    """Of an image model, from the tokenizer where there is one; else the released order behind the text vocabulary."""
    images = checkpoint.architecture.images
    assert images is not None
    known, vocab = added_tokens(directory), checkpoint.settings.vocab
    return ImageTokens(*(known.get(text, vocab + n) for n, text in enumerate(astuple(images.tokens))))


def end_ids(checkpoint: Checkpoint, directory: Path) -> tuple[int, ...]:
    """Where generation stops: generation_config.json, else the config, else the tokenizer, else the last text id."""
    generation = directory / "generation_config.json"
    for source, name in (
        (read_json(generation) if generation.is_file() else {}, generation.name),
        (checkpoint.config, "config.json"),
    ):
        value = source.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(_is_id(item) or item == -1 for item in ids):  # -1: never
            raise CheckpointError(
                f"{name}: eos_token_id must be one id or a list of ids, which are whole numbers, got {shown(value)}. "
                f"Restore the original {name}."
            )
        if ids:
            return tuple(ids)
    return (added_tokens(directory).get(checkpoint.architecture.prompt.end_of_text, checkpoint.settings.vocab - 1),)


def begin_id(checkpoint: Checkpoint, directory: Path) -> int:
    """What a sequence starts with: the first of the family's tokens that the model has an id for."""
    begin = checkpoint.architecture.prompt.begin
    for special in begin:
        value = end_ids(checkpoint, directory)[0] if special is Special.END else checkpoint.config.get(special)
        if _is_id(value):
            return value
    raise CheckpointError(
        f"a sequence must begin with a known token: config.json has no {' and no '.join(begin)}. "
        "Restore the original config.json."
    )


def begin_id_of(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> int:
    """The same as a tokenizer has it."""
    for special in prompt.begin:
        if (found := getattr(tokenizer, special)) is not None:
            return int(found)
    raise CheckpointError(
        f"a sequence must begin with a known token: the tokenizer names neither "
        f"{' nor '.join(special.removesuffix('_id') for special in prompt.begin)}. Restore tokenizer_config.json."
    )


def check_special_tokens(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where a graph's `io.json` couldn't be written later: ids that are none."""
    end_ids(checkpoint, checkpoint.path)
    if checkpoint.architecture.images:
        image_token_ids(checkpoint, checkpoint.path)


def _is_id(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 31
