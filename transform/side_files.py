"""What travels with a variant besides weights and config: tokenizer, templates, licences. The source's code never does.

A file by one of these names must be there and readable; links are followed only inside the checkpoint and into the
blobs of the hub's cache, since what is copied will be published.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from transform.errors import CheckpointError
from transform.regular_file import LFS_POINTER, IrregularError, open_regular

TEMPLATES = "additional_chat_templates"  # a folder of .jinja files
VIDEO = "video_preprocessor_config.json"
NAMES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "generation_config.json", "preprocessor_config.json", "processor_config.json", VIDEO,
    "chat_template.json", "chat_template.jinja",
)  # fmt: skip
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\Z")  # what SHA256SUMS lists
_LICENCE = re.compile(
    r"(licen[cs]e|copying|copyright|notice|use[_-]policy)([-_][\w-]*)?(\.(txt|md|rst|html|pdf))?\Z",
    re.IGNORECASE | re.ASCII,
)
# The same for the hub's file patterns, which know no words that may be absent.
HUB_PATTERNS = (
    *NAMES, f"{TEMPLATES}/*.jinja",
    *(f"{word}*" for name in ("LICEN[CS]E", "COPYING", "COPYRIGHT", "NOTICE", "USE[_-]POLICY")
      for word in (name, name.lower(), name.capitalize())),
)  # fmt: skip


def side_files(directory: Path) -> tuple[str, ...]:
    """What travels along of a directory, as paths in it; raises CheckpointError for what can't be taken."""
    return tuple(name for name in _named(directory) if _checked(directory, name))


def is_licence(name: str) -> bool:
    """Whether a file is a licence or notice by its name."""
    return bool(_LICENCE.match(name))


def copy_side_files(source: Path, names: Iterable[str], target: Path) -> None:
    """Copy side files into a directory; raises CheckpointError where one can't be read any more."""
    for name in names:
        (target / name).parent.mkdir(exist_ok=True)
        _checked(source, name)
        shutil.copyfile(source / name, target / name)


def _named(directory: Path) -> Iterator[str]:
    present = sorted(path.name for path in directory.iterdir())
    yield from (name for name in NAMES if name in present)
    yield from (name for name in present if is_licence(name) and not (directory / name).is_dir())
    if TEMPLATES in present:
        _confine(directory, TEMPLATES)
        yield from (f"{TEMPLATES}/{path.name}" for path in sorted((directory / TEMPLATES).glob("*.jinja")))


def _checked(directory: Path, name: str) -> bool:
    path = directory / name
    if not _PLAIN.match(path.name):
        raise CheckpointError(f"{path}: a name is made of letters, digits, '.', '_' and '-'. Rename the file.")
    if not path.exists() and path.is_symlink():
        raise CheckpointError(f"{path}: it must be there, it is a link to nothing. Get it again, or remove the link.")
    _confine(directory, name)
    try:
        with open_regular(path) as file:
            pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Make it readable, or remove it.") from error
    except IrregularError as error:
        raise CheckpointError(f"{path}: {error}. Get it again, or remove it.") from error
    if pointer:
        raise CheckpointError(f"{path}: it must be the file itself, it is a git-lfs pointer. Run git lfs pull.")
    return True


def _confine(directory: Path, name: str) -> None:
    """Refuse what leads out of the directory: it would be copied into a published variant."""
    home, place = directory.resolve(), (directory / name).resolve()
    allowed = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    if not any(root == place or root in place.parents for root in allowed):
        raise CheckpointError(
            f"{directory / name}: what travels along must lie in the checkpoint's own directory, it is a link to "
            f"{place}. Copy the file there if it belongs to the model."
        )
