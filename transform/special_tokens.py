"""Ids of the tokens with a role: end of text and the four image tokens. Needs no tokenizer library."""

from pathlib import Path
from typing import NamedTuple, TypeGuard

from transform.architectures import Settings, shown
from transform.checkpoint import Checkpoint
from transform.errors import CheckpointError
from transform.strict_json import MAX_TABLE_BYTES, read_json

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


def image_token_ids(directory: Path, settings: Settings) -> ImageTokens:
    """From the tokenizer where there is one; else the released order behind the text vocabulary."""
    known = added_tokens(directory)
    return ImageTokens(*(known.get(token, settings.vocab + n) for n, token in enumerate(IMAGE_TOKENS)))


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
    return (added_tokens(directory).get(END_OF_TEXT, checkpoint.settings.vocab - 1),)


def begin_id(checkpoint: Checkpoint, directory: Path) -> int:
    """What a sequence starts with: the config's begin token, else the end of text, as MolmoE has it."""
    value = checkpoint.config.get("bos_token_id")
    return value if _is_id(value) else end_ids(checkpoint, directory)[0]


def check_special_tokens(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where a graph's `io.json` couldn't be written later: ids that are none."""
    end_ids(checkpoint, checkpoint.path)
    if checkpoint.architecture.multimodal:
        image_token_ids(checkpoint.path, checkpoint.settings)


def _is_id(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 31
