"""What the hub's cache calls a model: `models--OWNER--NAME/snapshots/COMMIT`, with branches and tags in `refs/`."""

import re
from pathlib import Path

from transform.regular_file import IrregularError, read_regular

_COMMIT = re.compile(r"[0-9a-f]{7,64}\Z")


def hub_id(directory: Path) -> str | None:
    """`owner/name` of a snapshot in the cache; None for any other directory."""
    repository = directory.parent.parent.name
    if directory.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/", 1)


def revision_of(directory: Path) -> str | None:
    """The commit of a snapshot; None for any other directory."""
    return directory.name if hub_id(directory) is not None else None


def name_of(directory: Path) -> str:
    """What variants of a directory are called after: its name, or of a snapshot the model's.

    A snapshot that isn't the main branch's says its branch or tag as well, or else its commit.
    """
    model = hub_id(directory)
    if model is None:
        return directory.name
    name = model.rpartition("/")[2]
    refs = directory.parent.parent / "refs"
    found = sorted(str(ref.relative_to(refs)) for ref in refs.rglob("*") if _points_to(ref, directory.name))
    if "main" in found:
        return name
    revision = found[0] if found else directory.name[:8] if _COMMIT.match(directory.name) else directory.name
    return f"{name}-{re.sub(r'[^A-Za-z0-9_.-]', '-', revision)}"


def _points_to(ref: Path, commit: str) -> bool:
    try:
        return read_regular(ref, 200).decode().strip() == commit
    except (OSError, IrregularError, UnicodeDecodeError):
        return False
