"""`oci://HOST/REPOSITORY`: any OCI registry; a version is an artifact as ModelPack describes it.

A file is a blob: what the repository has, or another one beside it, is never sent again. A version is a tag on a
manifest, put when all its blobs are there; an alias is another tag on the same manifest.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from export.files.integrity import is_plain
from export.publish.content import Content, Item
from export.publish.login import DOCKER_HUB
from export.publish.model_pack import config_of, manifest_of, path_in, source_in
from export.publish.publisher import (
    PIECE,
    Receipt,
    Transfer,
    check_alias,
    check_owner,
    differs,
    digest_of,
    holds_login,
    receive,
)
from export.publish.repository import DIGEST, NAME, Repository, digest_of_bytes
from transform.errors import PublishError
from transform.ownership import MANIFEST, SIGNATURE
from transform.progress import Progress
from transform.strict_json import Record
from transform.write import insist_on_space

_LOOK_ELSEWHERE = 1 << 20  # bytes from which a file is looked for in other repositories
_REFERENCE = re.compile(
    rf"(?P<host>(?:[A-Za-z0-9.\-]+|\[[0-9A-Fa-f:]+\])(?::\d{{1,5}})?)/(?P<repository>{NAME})"
    rf"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.\-]{{0,127}}))?(?:@(?P<digest>{DIGEST.pattern}))?"
)
_LOCAL = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?")
_OTHER = "Give a version that knobcast has pushed."


def open_oci(rest: str) -> "Oci":
    """`oci://HOST/REPOSITORY[:TAG|@DIGEST]`; without TLS on this machine alone."""
    return Oci("oci", rest)


def open_oci_http(rest: str) -> "Oci":
    """`oci+http://…`: without TLS."""
    return Oci("oci+http", rest)


def parse_reference(rest: str) -> re.Match[str]:
    """host, repository, tag and digest; raises PublishError."""
    if holds_login(rest):
        raise PublishError("a registry's URL must hold no login. Leave it out, and log in: docker login HOST.")
    match = _REFERENCE.fullmatch(rest)
    if match is None:
        raise PublishError(
            f"a reference must be oci://HOST/REPOSITORY, lower case, with :TAG or @sha256:DIGEST behind it, got "
            f"{rest[:120]!r}. Give one such as oci://localhost:5000/team/model."
        )
    return match


class Oci:
    """One repository, and what the last plan and push found out about it."""

    def __init__(self, scheme: str, rest: str) -> None:
        match = parse_reference(rest)
        host = DOCKER_HUB if match["host"] in ("docker.io", "index.docker.io") else match["host"]
        tls = scheme == "oci" and not _LOCAL.fullmatch(host)
        self.target = f"{scheme}://{match['host']}/{match['repository']}"
        self._named: str | None = match["digest"] or match["tag"]
        self._repository = Repository(f"{'https' if tls else 'http'}://{host}", match["repository"])
        self._elsewhere: dict[str, str] = {}  # path -> repository that has it
        self._sent: frozenset[str] = frozenset()

    def plan(self, content: Content, alias: str | None = None) -> Transfer:
        """Every file is asked for by its digest; large ones that are missing are looked for beside the repository."""
        if self._named is not None:
            raise PublishError(f"a version's tag is made of its digest, got {self._named}. Give --alias instead.")
        if alias is not None:
            check_alias(alias)
        self._repository.insist()
        if alias is not None:
            self._check_alias(content, alias)
        present = {item.path for item in content.items if self._repository.has(_digest(item), item.size)}
        absent = [item for item in content.items if item.path not in present and item.size >= _LOOK_ELSEWHERE]
        self._elsewhere = {}
        for other in self._repository.neighbours() if absent else ():
            for item in absent:
                if item.path not in self._elsewhere and self._repository.has(_digest(item), item.size, other):
                    self._elsewhere[item.path] = other
        return Transfer(self.target, content, frozenset(present | self._elsewhere.keys()), alias)

    def push(self, transfer: Transfer, tick: Progress) -> Receipt:
        """Blobs, then the manifest under the version's tag."""
        content, sent = transfer.content, set()
        for item in content.items:
            other = self._elsewhere.get(item.path)
            if item.path in transfer.present and other is None:
                continue
            body = _File(content.directory / item.path, tick)
            if self._repository.upload(_digest(item), item.size, body.pieces, other):
                sent.add(item.path)
        self._sent = frozenset(sent)
        whole = self._signed(content)
        config = config_of(whole)
        name = digest_of_bytes(config)
        if not self._repository.has(name, len(config)):
            self._repository.upload(name, len(config), lambda at, end: (config[at:end],))
        manifest = manifest_of(whole, name, len(config))
        self._repository.put_manifest(content.version, manifest)
        return Receipt(f"{self.target}:{content.version}", digest_of_bytes(manifest))

    def confirm(self, receipt: Receipt, content: Content) -> None:
        """The manifest and what was sent are read back and hashed. What was there already is asked for by its digest:
        the registry compared that when it took it."""
        self._manifest(receipt, content)
        for item in content.items:
            if item.path in self._sent:
                found = digest_of(self._repository.blob(_digest(item), item.size), item.size)
                if found != item.sha256:
                    raise differs(item.path, item.sha256, found)
            elif not self._repository.has(_digest(item), item.size):
                raise PublishError(f"{receipt.reference} must hold {item.path}, the registry lost it. Push it again.")

    def move_alias(self, receipt: Receipt, content: Content, alias: str) -> None:
        """A second tag on the manifest."""
        self._check_alias(content, alias)
        self._repository.put_manifest(alias, self._manifest(receipt, content))

    def fetch(self, reference: str, into: Path, tick: Progress) -> None:
        """What the layers' annotations name, each compared with its digest."""
        if self._named is None:
            raise PublishError(f"{reference} names no version.{self._offered()}")
        found = self._repository.manifest(self._named)
        if found is None:
            self._repository.insist()
            raise PublishError(f"{self.target} has no {self._named}.{self._offered()}")
        layers = list(_layers(found[1], reference))
        insist_on_space(sum(layer.size for layer in layers), into, "OUT")
        for layer in layers:
            pieces = self._repository.blob(_digest(layer), layer.size)
            receive(pieces, into / layer.path, layer.sha256, layer.size, tick)

    def _signed(self, content: Content) -> Content:
        """With the signature that this very version has there, where the content brings none."""
        found = self._repository.manifest(content.version)
        there: dict[str, Item] = {}
        with suppress(PublishError):  # a tag that isn't ours is replaced
            there = {layer.path: layer for layer in _layers(found[1] if found else {}, content.version)}
        *others, manifest = content.items
        if SIGNATURE not in there or there.get(MANIFEST) != manifest or SIGNATURE in {i.path for i in others}:
            return content
        return replace(content, items=(*others, there[SIGNATURE], manifest))

    def _manifest(self, receipt: Receipt, content: Content) -> bytes:
        found = self._repository.manifest(content.version)
        data = found[0] if found else b""
        if digest_of_bytes(data) != receipt.digest:
            raise differs(f"the manifest of {receipt.reference}", receipt.digest[7:], digest_of_bytes(data)[7:])
        return data

    def _check_alias(self, content: Content, alias: str) -> None:
        found = self._repository.manifest(alias)
        check_owner(alias, source_in(found[1]) if found else None, content)

    def _offered(self) -> str:
        tags = self._repository.tags()
        return f" Give one of: {', '.join(tags[:8])}." if tags else " Check the reference."


class _File:
    """The body of an upload, from a file. Progress goes back to where a repetition begins."""

    def __init__(self, path: Path, tick: Progress) -> None:
        self._path, self._tick, self._done = path, tick, 0

    def pieces(self, at: int, end: int) -> Iterator[bytes]:
        self._reach(at)
        with self._path.open("rb") as file:
            file.seek(at)
            while at < end and (piece := file.read(min(PIECE, end - at))):
                yield piece
                at += len(piece)
                self._reach(at)

    def _reach(self, at: int) -> None:
        self._tick(at - self._done)
        self._done = at


def _digest(item: Item) -> str:
    return f"sha256:{item.sha256}"


def _layers(manifest: Record, reference: str) -> Iterator[Item]:
    """The files of a manifest that anybody may have written."""
    seen = set()
    layers = manifest.get("layers")
    for layer in layers if isinstance(layers, list) else ():
        entry = layer if isinstance(layer, dict) else {}
        path, digest, size = path_in(entry), entry.get("digest"), entry.get("size")
        if path is None or not is_plain(path) or path in seen:
            raise PublishError(
                f"{reference}: its layers must have plain paths, each once, got {str(path)[:80]!r}. {_OTHER}"
            )
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
            raise PublishError(f"{reference}: the layer of {path} must have a SHA-256 and a size. {_OTHER}")
        seen.add(path)
        yield Item(path, size, digest.removeprefix("sha256:"))
    if not seen:
        raise PublishError(f"{reference}: it has no layers, so it is no variant. {_OTHER}")
