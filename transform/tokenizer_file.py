"""A tokenizer that can't be loaded must not travel with a verified variant, nor ids that the model lacks. No torch."""

import json
from functools import lru_cache
from math import prod
from pathlib import Path

from transform.checkpoint import Checkpoint
from transform.errors import CheckpointError
from transform.regular_file import read_regular
from transform.side_files import side_files
from transform.strict_json import MAX_TABLE_BYTES, read_json

FILE = "tokenizer.json"
_MOST_GROWTH = 16
# What AutoTokenizer makes a tokenizer of as well, and `run` doesn't.
OTHERS = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
          "tekken.json")  # fmt: skip


def check_tokenizer(directory: Path) -> None:
    """Raise CheckpointError unless the directory's tokenizer.json, if there is one, can be loaded, and what lies beside
    it as JSON can be read."""
    for name in side_files(directory):
        if name.endswith(".json") and name != FILE:
            read_json(directory / name, MAX_TABLE_BYTES)
    if not (directory / FILE).is_file():
        return
    check_growth(directory)
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(directory / FILE))
    except Exception as error:  # tokenizers raises nothing more precise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{directory}: {FILE} must be intact: {reason}. Get it again, or remove it to export without a tokenizer."
        ) from error


def check_growth(directory: Path) -> None:
    """Raise CheckpointError for a tokenizer.json that makes a short text long: a few replacements behind each other
    can take all memory for any prompt."""
    path = directory / FILE
    if not path.is_file():
        return
    try:
        data = read_regular(path, MAX_TABLE_BYTES)
        # parsing a large vocabulary takes a while; a letter may be spelled as its number
        stored = json.loads(data) if b'"Replace"' in data or b"\\u" in data else {}
    except (OSError, ValueError, RecursionError):
        return  # tokenizers refuses it
    for part in ("normalizer", "pre_tokenizer", "decoder") if isinstance(stored, dict) else ():
        if (grown := _growth(stored.get(part))) > _MOST_GROWTH:
            raise CheckpointError(
                f"{directory}: the {part} of {FILE} must make a text at most {_MOST_GROWTH} times as long, its "
                f"replacements make it up to {min(grown, 10**18):,} times. Get it again from whom you trust."
            )


def _growth(part: object) -> int:
    """How many times longer the replacements of a part make a text, all those in a sequence together."""
    if isinstance(part, list):
        return prod(map(_growth, part))
    if not isinstance(part, dict):
        return 1
    if part.get("type") != "Replace":
        return prod(_growth(inner) for inner in part.values())
    pattern, content = part.get("pattern"), part.get("content")
    text = pattern.get("String") if isinstance(pattern, dict) else None
    least = len(text) if isinstance(text, str) and text else 1  # what a regular expression finds may be one letter
    return -(-len(content) // least) if isinstance(content, str) and content else 1


def embedding_rows(checkpoint: Checkpoint) -> int:
    """How many token ids the model has an embedding for; ids run from 0."""
    family = checkpoint.architecture
    if not family.complete:
        return checkpoint.settings.vocab
    return sum(checkpoint.tensor(role).shape[0] for role in family.modality.tables)


def tokenizer_warnings(checkpoint: Checkpoint) -> list[str]:
    """What a variant's users would miss or stumble on: no tokenizer.json, ids beyond the embedding."""
    if FILE not in checkpoint.side_files:
        lacking = "`run` can't use the variant"
        if checkpoint.architecture.modality.sees_images:
            lacking = "the variant has no processor and `run` can't use it"
        others = [name for name in OTHERS if name in checkpoint.side_files]
        mend = f"; there is {others[0]}: save_pretrained of its AutoTokenizer makes one" if others else ""
        return [f"the source has no {FILE}: {lacking}{mend}"]
    highest, rows = highest_id(checkpoint.path), embedding_rows(checkpoint)
    if highest < rows:
        return []
    return [
        f"the tokenizer has ids up to {highest}, the model has embeddings for those below {rows}: prompts that use the "
        "others are refused. Resize the source's embeddings to its tokenizer if they are needed"
    ]


def highest_id(directory: Path) -> int:
    """The largest id in tokenizer.json, -1 where it names none; whether it is intact is `check_tokenizer`'s to say.

    An unchanged file is parsed once: a family's plans all ask.
    """
    status = (directory / FILE).stat()
    return _highest_id(directory / FILE, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _highest_id(path: Path, *_unchanged: int) -> int:
    try:
        stored = read_json(path, MAX_TABLE_BYTES)
    except CheckpointError:
        return -1
    model, added = stored.get("model"), stored.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids: list[object] = list(vocab.values()) if isinstance(vocab, dict) else []
    ids += [len(vocab) - 1] if isinstance(vocab, list) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return max((value for value in ids if type(value) is int), default=-1)
