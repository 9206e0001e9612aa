"""Ids of the tokens with a role: end of text and the four image tokens. Needs no tokenizer library."""

from pathlib import Path
from typing import NamedTuple

from transform.architectures import Settings
from transform.checkpoint import Checkpoint, read_json

IMAGE_TOKENS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>")
END_OF_TEXT = "<|endoftext|>"


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
    return {token["content"]: int(token["id"]) for token in read_json(path).get("added_tokens", ())}


def image_token_ids(directory: Path, settings: Settings) -> ImageTokens:
    """From the tokenizer where there is one; else the released order behind the text vocabulary."""
    known = added_tokens(directory)
    return ImageTokens(*(known.get(token, settings.vocab + n) for n, token in enumerate(IMAGE_TOKENS)))


def end_ids(checkpoint: Checkpoint, directory: Path) -> tuple[int, ...]:
    """Where generation stops: generation_config.json, else the config, else the tokenizer, else the last text id."""
    generation = directory / "generation_config.json"
    for source in (read_json(generation) if generation.is_file() else {}, checkpoint.config):
        value = source.get("eos_token_id")
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list) and value:
            return tuple(int(item) for item in value)
    return (added_tokens(directory).get(END_OF_TEXT, checkpoint.settings.vocab - 1),)


def begin_id(checkpoint: Checkpoint, directory: Path) -> int:
    """What a sequence starts with: the config's begin token, else the end of text, as MolmoE has it."""
    value = checkpoint.config.get("bos_token_id")
    return value if isinstance(value, int) else end_ids(checkpoint, directory)[0]
