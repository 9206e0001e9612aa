"""A tokenizer that can't be loaded must not travel with a verified variant. No torch."""

from pathlib import Path

from transform.errors import CheckpointError

FILE = "tokenizer.json"


def check_tokenizer(directory: Path) -> None:
    """Raise CheckpointError unless the directory's tokenizer.json, if there is one, can be loaded."""
    if not (directory / FILE).is_file():
        return
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(directory / FILE))
    except Exception as error:  # tokenizers raises nothing more precise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{directory}: {FILE} must be intact: {reason}. Get it again, or remove it to export without a tokenizer."
        ) from error
