"""`s3://BUCKET/PREFIX` and every other store that fsspec knows (gs, abfs, memory, file, …).

    PREFIX/VERSION/…     its files, manifest.json last: what has none is no version
    PREFIX/ALIAS.json    a pointer, written last and in one request: stores can't rename

A file that another version under the prefix has is copied inside the store. All that is there is read back and hashed,
as stores don't tell SHA-256.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from export.files.integrity import is_plain
from export.publish.content import Content, Item
from export.publish.publisher import (
    PIECE,
    SMALL,
    Receipt,
    Transfer,
    check_alias,
    check_owner,
    differs,
    digest_of,
    holds_login,
    listed_in,
    pieces_of,
    plainly,
    receive,
    scrubbed,
)
from importance.atomic import write_atomically
from transform.errors import PublishError
from transform.extras import lacking
from transform.ownership import MANIFEST, SIGNATURE, SUMS
from transform.progress import Progress
from transform.strict_json import Record, parse
from transform.write import insist_on_space

_BLOCK = 8 << 20  # bytes of one request
_REQUESTS = 9_000  # for one file: S3 takes at most 10,000
_VERSIONS = 50  # of a prefix, whose files are looked through for some to copy
_POINTER = ".json"
_WAY_OUT = "Check the URL and your login there (for S3: aws configure, or AWS_… in the environment); run it again."


class _Files(Protocol):
    """What is used of an fsspec file system."""

    def open(self, path: str, mode: str, block_size: int) -> BinaryIO: ...

    def cp_file(self, path1: str, path2: str) -> None: ...

    def cat_file(self, path: str, start: int, end: int) -> bytes: ...

    def pipe_file(self, path: str, value: bytes) -> None: ...

    def find(self, path: str, detail: bool) -> Mapping[str, Mapping[str, object]]: ...

    def ls(self, path: str, detail: bool) -> Iterable[str]: ...

    def exists(self, path: str) -> bool: ...


class _Begun(Protocol):
    """What fsspec's own files are besides."""

    closed: bool

    def discard(self) -> None: ...


def knows(scheme: str) -> bool:
    """Whether fsspec has a file system for a scheme, installed or not."""
    try:
        from fsspec.registry import known_implementations
    except ModuleNotFoundError:
        return False
    return scheme in known_implementations


def open_store(scheme: str, rest: str) -> "ObjectStore":
    """`scheme://rest`; raises PublishError where what serves it isn't installed."""
    if not rest.strip("/"):
        raise PublishError(f"{scheme}:// must name a place. Give one, such as {scheme}://bucket/models.")
    if holds_login(rest):
        raise PublishError("a store's URL must hold no login. Leave it out, and log in as its own tools do.")
    url = f"{scheme}://{rest.rstrip('/')}"
    try:
        from fsspec.core import url_to_fs

        files, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        if scheme in ("s3", "s3a"):
            raise PublishError(lacking("s3fs")) from None
        raise PublishError(f"{scheme}:// needs a package of fsspec that isn't installed here: {error}") from None
    return ObjectStore(files, url, str(root), folder=scheme in ("file", "local"))


class ObjectStore:
    """A prefix in a store, or in a `folder`, whose files need a rename to appear whole."""

    def __init__(self, files: _Files, url: str, root: str, folder: bool = False) -> None:
        self._files, self.url, self._root, self._folder = files, url, root, folder

    def plan(self, content: Content, alias: str | None = None) -> Transfer:
        """What is at the version's place is read and hashed; what other versions have is known by their SHA256SUMS."""
        with self._asking():
            if alias is not None:
                check_alias(alias)
                self._check_alias(content, alias)
            sizes = self._sizes(self._at(content.version))
            there = {
                item.path for item in content.items if sizes.get(item.path) == item.size and self._holds(content, item)
            }
            copies = self._copies(content).keys() if len(there) < len(content.items) else ()
        present = there | {item.path for item in content.items if item.sha256 in copies}
        return Transfer(self.url, content, frozenset(present), alias)

    def push(self, transfer: Transfer, tick: Progress) -> Receipt:
        """Send or copy, in the order of the items."""
        content = transfer.content
        with self._asking():
            copies, sizes = self._copies(content), self._sizes(self._at(content.version))
            for item in content.items:
                target = self._at(content.version, item.path)
                if item.path not in transfer.present:
                    self._send(content.directory / item.path, target, item, tick)
                elif item.sha256 in copies and (sizes.get(item.path) != item.size or not self._holds(content, item)):
                    self._copy(copies[item.sha256], target)
        return Receipt(f"{self.url}/{content.version}", content.digest)

    def confirm(self, receipt: Receipt, content: Content) -> None:
        """Read every file back."""
        with self._asking():
            for item in content.items:
                found = digest_of(self._pieces(self._at(content.version, item.path)), item.size)
                if found != item.sha256:
                    raise differs(f"{receipt.reference}/{item.path}", item.sha256, found)

    def move_alias(self, receipt: Receipt, content: Content, alias: str) -> None:
        """Overwrite the pointer."""
        pointer = {"version": receipt.reference.rpartition("/")[2], "digest": content.digest, "source": content.name}
        with self._asking():
            self._check_alias(content, alias)
            data = json.dumps(pointer, indent=2).encode()
            if self._folder:
                write_atomically(Path(self._at(alias + _POINTER)), data, force=True)
            else:
                self._files.pipe_file(self._at(alias + _POINTER), data)

    def fetch(self, reference: str, into: Path, tick: Progress) -> None:
        """What the version's SHA256SUMS names; the prefix is that of the version or alias."""
        with self._asking():
            version = self._version()
            sizes = self._sizes(version)
            insist_on_space(sum(sizes.values()), into, "OUT")
            for name in (SUMS, MANIFEST, *({SIGNATURE} & sizes.keys())):
                receive(self._pieces(f"{version}/{name}"), into / name, None, SMALL, tick)
            for path, sha256 in listed_in(into).items():
                if path not in sizes:
                    raise PublishError(f"{scrubbed(reference)} lacks {path}. Push the version again.")
                receive(self._pieces(f"{version}/{path}"), into / path, sha256, sizes[path], tick)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        # the clients below fsspec have errors of their own, with no class in common
        with plainly(self.url, _WAY_OUT, (Exception,)):
            yield

    def _at(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _version(self) -> str:
        """Where the version lies that the URL names, or whose alias it names."""
        if self._files.exists(f"{self._root}/{MANIFEST}"):
            return self._root
        if pointer := self._pointer(self._root + _POINTER):
            return f"{self._root.rpartition('/')[0]}/{pointer['version']}"
        offered = ", ".join(self._versions()[:8])
        raise PublishError(
            f"{self.url}: no {MANIFEST}, so it is no version of a variant. "
            f"{f'Give one of its versions: {offered}' if offered else 'Check the URL'}."
        )

    def _versions(self) -> list[str]:
        try:
            names = [str(path).rstrip("/").rpartition("/")[2] for path in self._files.ls(self._root, detail=False)]
        except FileNotFoundError:
            return []
        return [name for name in sorted(names) if self._files.exists(self._at(name, MANIFEST))][:_VERSIONS]

    def _pointer(self, path: str) -> Record | None:
        if not self._files.exists(path):
            return None
        try:
            found = parse(self._files.cat_file(path, start=0, end=SMALL))
        except ValueError:
            found = None
        version = found.get("version") if isinstance(found, dict) else None
        if not isinstance(version, str) or "/" in version or not is_plain(version):
            raise PublishError(f"{scrubbed(path)} is no alias. Give another one.")
        return found

    def _check_alias(self, content: Content, alias: str) -> None:
        pointer = self._pointer(self._at(alias + _POINTER))
        check_owner(alias, str(pointer.get("source")) if pointer else None, content)

    def _sizes(self, folder: str) -> dict[str, int]:
        """Path below a folder -> bytes."""
        found = self._files.find(folder, detail=True)
        return {path.partition(f"{folder}/")[2]: int(str(entry["size"])) for path, entry in found.items()}

    def _holds(self, content: Content, item: Item) -> bool:
        return digest_of(self._pieces(self._at(content.version, item.path)), item.size) == item.sha256

    def _copies(self, content: Content) -> dict[str, str]:
        """SHA-256 -> where another version has such a file, by what its SHA256SUMS says and with the right size."""
        wanted = {item.sha256: item.size for item in content.items}
        found: dict[str, str] = {}
        for version in self._versions():
            if version == content.version:
                continue
            sums = self._files.cat_file(self._at(version, SUMS), start=0, end=SMALL).decode("utf-8", "replace")
            sizes = self._sizes(self._at(version))
            for line in sums.splitlines():
                sha256, _, path = line.partition("  ")
                if wanted.get(sha256) is not None and sizes.get(path) == wanted[sha256]:
                    found[sha256] = self._at(version, path)
        return found

    def _send(self, source: Path, target: str, item: Item, tick: Progress) -> None:
        digest = hashlib.sha256()

        def write(file: BinaryIO) -> None:
            for piece in pieces_of(source, tick):
                digest.update(piece)
                file.write(piece)

        self._write(target, write, max(_BLOCK, item.size // _REQUESTS))
        if digest.hexdigest() != item.sha256:
            raise PublishError(f"{source} was changed while it was pushed; the version isn't published. Push it again.")

    def _copy(self, source: str, target: str) -> None:
        if not self._folder:
            self._files.cp_file(source, target)
            return
        with Path(source).open("rb") as read:
            self._write(target, lambda file: shutil.copyfileobj(read, file), PIECE)

    def _write(self, target: str, write: Callable[[BinaryIO], None], block: int) -> None:
        """A file that has its name once it is whole: stores see to that by themselves."""
        if self._folder:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(target), write, force=True)
            return
        file = self._files.open(target, "wb", block_size=block)
        try:
            write(file)
        except BaseException:
            _drop(file)
            raise
        file.close()

    def _pieces(self, path: str) -> Iterator[bytes]:
        with self._files.open(path, "rb", block_size=_BLOCK) as file:
            while piece := file.read(PIECE):
                yield piece


def _drop(file: BinaryIO) -> None:
    """Forget what was written so far, which closing a file would put there as if it were all."""
    begun = cast(_Begun, file)
    with suppress(Exception):  # what stopped the writing may stop this
        begun.discard()
    with suppress(Exception):
        begun.closed = True
