"""`dir:SHELF`: a folder with a directory per version, complete and usable where it lies; aliases are links to them.

A version appears by one rename, an alias moves by one. Blocks are shared with the original where the file system can.
"""

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from export.files.integrity import sha256_file
from export.publish.content import Content, Item
from export.publish.publisher import (
    SMALL,
    Receipt,
    Transfer,
    check_alias,
    check_owner,
    differs,
    listed_in,
    pieces_of,
    receive,
    regular,
)
from importance.atomic import write_atomically
from transform.copying import RangeCopier
from transform.errors import PublishError, WriteError
from transform.ownership import MANIFEST, SIGNATURE, SUMS, read_manifest
from transform.progress import Progress
from transform.stage import alive, staged, sync_names

SCHEME = "dir:"


def open_directory(rest: str) -> "Directory":
    """`dir:PATH`, of a shelf (push) or of a version or alias on it (pull)."""
    if not rest:
        raise PublishError("dir: must name a folder. Give one, such as dir:/srv/models.")
    return Directory(Path(rest).expanduser())


class Directory:
    """A shelf."""

    def __init__(self, shelf: Path) -> None:
        self.shelf = shelf

    def plan(self, content: Content, alias: str | None = None) -> Transfer:
        """All files or none: a version is there, or isn't. A signature may come later."""
        inner, outer = content.directory.resolve(), self.shelf.resolve()
        if outer.is_relative_to(inner):
            raise PublishError(f"{self.shelf} lies in the variant that is to be published. Give another folder.")
        if (self.shelf / MANIFEST).is_file():
            raise PublishError(f"{self.shelf} is a variant, no folder for versions. Give another folder.")
        if alias is not None:
            check_alias(alias)
            self._check_alias(content, alias)
        version = self.shelf / content.version
        present: frozenset[str] = frozenset()
        if version.is_dir() and any(version.iterdir()):
            there = [i for i in content.items if i.path != SIGNATURE or _is_there(version, i)]
            for item in there:
                _check(version, item)
            present = frozenset(item.path for item in there)
        return Transfer(f"{SCHEME}{self.shelf}", content, present, alias)

    def push(self, transfer: Transfer, tick: Progress) -> Receipt:
        """Copy beside the version's place and rename."""
        content = transfer.content
        version = self.shelf / content.version
        if [item.path for item in transfer.moving] == [SIGNATURE]:
            signature = (content.directory / SIGNATURE).read_bytes()
            write_atomically(version / SIGNATURE, signature, force=True)
            sync_names(version)
            tick(len(signature))
        elif transfer.moving:
            try:
                with staged(version, force=False, called="folder") as stage:
                    for item in content.items:
                        _copy(content.directory / item.path, stage / item.path, tick)
                        _check(stage, item)
            except WriteError:
                if not all(_is_there(version, item) for item in content.items if item.path != SIGNATURE):
                    raise  # else another push was first, with the same bytes
        return Receipt(f"{SCHEME}{version}", content.digest)

    def confirm(self, receipt: Receipt, content: Content) -> None:
        """Read every file again."""
        for item in content.items:
            _check(Path(receipt.reference.removeprefix(SCHEME)), item)

    def move_alias(self, receipt: Receipt, content: Content, alias: str) -> None:
        """A link, replaced by one rename."""
        self._check_alias(content, alias)
        self._sweep(alias)
        link = self.shelf / f".{alias}.{os.getpid()}-{secrets.token_hex(4)}"
        try:
            link.symlink_to(content.version)
            link.replace(self.shelf / alias)
        except OSError as error:
            raise PublishError(
                f"{self.shelf / alias}: the alias can't be written ({error.strerror}); the version is published as "
                f"{receipt.reference}. Check the folder and push again."
            ) from error
        finally:
            with suppress(OSError):
                link.unlink(missing_ok=True)
        sync_names(self.shelf)

    def fetch(self, reference: str, into: Path, tick: Progress) -> None:
        """Copy what the version's own SHA256SUMS names; a link is followed once, so that it may move meanwhile."""
        named = Path(reference.removeprefix(SCHEME)).expanduser()
        version = named.resolve()
        if not (version / MANIFEST).is_file():
            raise PublishError(f"{named}: no {MANIFEST}, so it is no version of a variant.{_offered(named)}")
        try:
            for name in (SUMS, MANIFEST, *([SIGNATURE] if (version / SIGNATURE).is_file() else [])):
                receive(pieces_of(version / name, tick), into / name, None, SMALL, lambda _: None)
            for path in listed_in(into):
                _copy(version / path, into / path, tick)
        except FileNotFoundError as error:
            raise PublishError(f"{version} lacks {Path(error.filename).name}. Push the version again.") from error

    def _sweep(self, alias: str) -> None:
        """Remove links of runs that were killed before they renamed them."""
        with suppress(OSError):
            for path in list(self.shelf.iterdir()):
                match = re.fullmatch(rf"\.{re.escape(alias)}\.(\d+)-[0-9a-f]{{8}}", path.name)
                if match and path.is_symlink() and not alive(int(match[1])):
                    path.unlink(missing_ok=True)

    def _check_alias(self, content: Content, alias: str) -> None:
        place = self.shelf / alias
        if not os.path.lexists(place):
            return
        if not place.is_symlink():
            raise PublishError(f"{place} exists and is no alias. Give another --alias.")
        source = read_manifest(place).get("source")
        check_owner(alias, str(source.get("name")) if isinstance(source, dict) else None, content)


def _copy(source: Path, target: Path, tick: Progress) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with regular(source) as read, target.open("xb") as write:
        RangeCopier(read.fileno(), write.fileno(), tick).copy(0, 0, os.fstat(read.fileno()).st_size)


def _is_there(version: Path, item: Item) -> bool:
    path = version / item.path
    return path.is_file() and sha256_file(path) == item.sha256


def _check(version: Path, item: Item) -> None:
    try:
        found = sha256_file(version / item.path)
    except OSError as error:
        raise PublishError(
            f"{version} must hold {item.path}: {error.strerror}. Remove that directory and push again."
        ) from error
    if found != item.sha256:
        raise differs(str(version / item.path), item.sha256, found)


def _offered(shelf: Path) -> str:
    found = sorted(path.parent.name for path in shelf.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))
    return f" Give one of its versions: {', '.join(found[:8])}." if found else " Check the path."
