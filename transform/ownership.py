"""Whose the files of a directory are: those its record names, traces that systems leave, and all others, the user's.

A variant's record is SHA256SUMS, or `files.names` of the manifest where nothing was verified; a layout's is the latter.
A signature may lie beside them.
Names are relative, with `/` between their parts. Nothing here reads a weight.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from transform.regular_file import read_regular
from transform.strict_json import MAX_JSON_BYTES, Record

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
SIGNATURE = "model.sig"  # over all the others; OpenSSF model-signing calls it so
OUTSIDE = (SUMS, MANIFEST, SIGNATURE)  # what SHA256SUMS doesn't name
SCHEMA = 1
PENDING = "pending"  # of the manifest: files that `knobcast derive` is adding, or was when it was killed
CACHES = "__pycache__"  # .py files import each other, so Python may have left its cache beside them
# by file systems, desktops, git and the hub's client; none of them holds anything of the user's
_TRACES = re.compile(
    r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.nfs.*|\.fuse_hidden.*|\.directory|\.gitattributes|"
    r"\..+\.stage-[0-9]+(\.ours|\.theirs)?"
)
_HUB = ".cache/huggingface/"


def is_ignored(name: str) -> bool:
    """Whether a file or folder name never is one of a variant's: hidden, a desktop's, or Python's cache."""
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini", CACHES)


def visible_files(directory: Path) -> list[str]:
    """Every file, and whatever else isn't a folder, whose name has no part that is ignored; sorted."""
    return sorted(name for name in _files(directory) if not any(map(is_ignored, name.split("/"))))


def foreign_files(directory: Path) -> list[str] | None:
    """What lies in a directory beside its own files and the traces of systems; None where the record is missing."""
    own = _recorded(directory)
    if own is None:
        return None
    return sorted(name for name in _files(directory) if name not in own and not _is_trace(name))


def traces(directory: Path) -> list[str]:
    """Names directly in a directory that systems made, and would miss."""
    return [path.name for path in directory.iterdir() if _TRACES.fullmatch(path.name) and ".stage-" not in path.name]


def read_manifest(directory: Path) -> Record:
    """The manifest where it is a JSON object; else an empty one."""
    try:
        manifest = json.loads(read_regular(directory / MANIFEST, MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def is_ours(manifest: Record) -> bool:
    """Whether knobcast wrote a manifest, by what it says."""
    words = isinstance(manifest.get("blocks_kept"), list) or isinstance(manifest.get("layout"), str)
    return words and manifest.get("schema") == SCHEMA


def _files(directory: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(directory):
        at = Path(folder).relative_to(directory)
        yield from ((at / name).as_posix() for name in files)
        yield from ((at / name).as_posix() for name in folders if (Path(folder) / name).is_symlink())


def _is_trace(name: str) -> bool:
    parts = name.split("/")
    return bool(_TRACES.fullmatch(parts[-1])) or CACHES in parts or name.startswith(_HUB)


def _recorded(directory: Path) -> set[str] | None:
    manifest = read_manifest(directory)
    files = manifest.get("files")
    names = files.get("names") if isinstance(files, dict) else None
    if isinstance(names, list):
        found = {str(name) for name in names}
    else:
        try:
            text = read_regular(directory / SUMS, MAX_JSON_BYTES).decode()
        except (OSError, ValueError):
            return None
        found = {line[66:] for line in text.splitlines() if re.match(r"[0-9a-f]{64}  ", line)}
    derived, pending = manifest.get("derived"), manifest.get(PENDING)
    for entry in derived.values() if isinstance(derived, dict) else ():
        if isinstance(entry, dict):
            found |= {str(entry[word]) for word in ("graph", "overlay") if word in entry}
    added = pending.get("added") if isinstance(pending, dict) else None
    found |= set(added) if isinstance(added, dict) else set()
    return found | {*OUTSIDE}
