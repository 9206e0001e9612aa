"""Find a model: a directory, or a hub id that is downloaded to the hub's cache (weights, config, side files only)."""

import re
from pathlib import Path

from transform.errors import CheckpointError
from transform.side_files import HUB_PATTERNS
from transform.weight_files import INDEX

DEFAULT = Path(__file__).parent.parent / "artifacts" / "molmoe-nano"


def resolve(model: str | Path | None) -> Path:
    """The local directory of a model; None is the embedded default model. No code of the source is fetched."""
    if model is None:
        return DEFAULT
    path = Path(model)
    if path.exists():
        return path.resolve()
    text = str(model)
    if not re.fullmatch(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+", text):
        raise CheckpointError(f"{text}: no such directory, and not a hub id (owner/name). Check the path.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(text, allow_patterns=["config.json", INDEX, "*.safetensors", *HUB_PATTERNS])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{text}: no such directory, and the hub did not give it ({type(error).__name__}). "
            "Check the name and the network, or give a local directory."
        ) from error
    return Path(found)
