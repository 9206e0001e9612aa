"""Find a model: a directory, or a hub id that is downloaded to the hub's cache (weights, config, card, side files)."""

import re
from pathlib import Path

from transform.errors import CheckpointError
from transform.side_files import HUB_PATTERNS
from transform.weight_files import INDEX

DEFAULT = Path(__file__).parent.parent / "artifacts" / "molmoe-nano"


def resolve(model: str | Path | None, revision: str | None = None) -> Path:
    """The local directory of a model; None is the embedded default model. No code of the source is fetched.

    `revision`: a branch, tag or commit of a hub model; None is its main branch.
    """
    if model is None or _exists(Path(model)):
        if revision is not None:
            raise CheckpointError(
                f"a revision is one of a hub model, got {revision!r} for {'no model' if model is None else model}. "
                "Leave --revision out, or give a hub id."
            )
        return DEFAULT if model is None else Path(model).resolve()
    text = str(model)
    if not re.fullmatch(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+", text) or len(text) > 200:
        raise CheckpointError(
            f"{text[:200]}: no such directory, and not a hub id (owner/name, its branch by --revision). Check the path."
        )
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", INDEX, "*.safetensors", "README.md", *HUB_PATTERNS]  # the card has the licence
    try:
        found = snapshot_download(text, revision=revision, allow_patterns=wanted)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = "" if revision is None else f" at revision {revision!r}"
        said = f"the hub did not give it{at} ({type(error).__name__}). Check the name and the network"
        if constants.HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError):
            said = f"the hub's cache does not have it{at}. HF_HUB_OFFLINE is set, so the hub isn't asked: unset it"
        raise CheckpointError(f"{text}: no such directory, and {said}, or give a local directory.") from error
    return Path(found)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long for any file
        return False
