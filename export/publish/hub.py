"""`hf:OWNER/NAME`: a repository of models on the Hugging Face Hub, a branch per version.

Files go to the version's branch, are listed there again, and then `main` gets them in one commit, so that it never is
half a variant. An alias is a branch too, for it can move in one commit; a tag can't. Large files are sent once to a
repository, whatever the branches that have them. The Hub states digests; what a download brings, `pull` hashes.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.publish.content import Content, Item
from export.publish.publisher import (
    MOST,
    SMALL,
    Receipt,
    Transfer,
    check_alias,
    check_owner,
    differs,
    insist_on,
    listed_in,
    pieces_of,
    receive,
)
from transform.errors import PublishError
from transform.ownership import MANIFEST, SIGNATURE, SUMS
from transform.progress import Progress
from transform.scratch import scratch
from transform.strict_json import read_json

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from export.publish.hub_client import HubClient, Listed

MAIN = "main"
_REST = re.compile(r"(?P<repository>[A-Za-z0-9][\w.\-]*/[A-Za-z0-9_][\w.\-]*)(?:@(?P<revision>[\w.\-]+))?")
_README = "README.md"


def open_hub(rest: str, public: bool = False) -> "Hub":
    """`hf:OWNER/NAME`, for a pull with `@REVISION`: a version, an alias, a commit; else main."""
    match = _REST.fullmatch(rest)
    if match is None:
        raise PublishError(f"hf: must name a repository as OWNER/NAME, got {rest[:80]!r}. Give one, hf:team/small-k4.")
    insist_on("huggingface_hub")
    return Hub(match["repository"], match["revision"], public)


@dataclass(frozen=True)
class Hub:
    """A repository; `revision`: what a pull takes; `public`: whether a repository that a push creates is."""

    repository: str
    revision: str | None = None
    public: bool = False

    def plan(self, content: Content, alias: str | None = None) -> Transfer:
        """What the branch of the version or `main` lists, and what the large file storage has besides."""
        if self.revision is not None:
            raise PublishError(
                f"a push names its branch itself, {content.version}, got @{self.revision}. Leave that out."
            )
        if alias is not None:
            check_alias(alias)
            if alias == MAIN:
                raise PublishError("main moves with every push. Give another --alias, or none.")
        present: frozenset[str] = frozenset()
        with self._client() as client:
            refs = client.refs()
            if refs is not None:
                if alias in refs.tags:
                    raise PublishError(f"{alias} is a tag of {self.repository}, and stays. Give another --alias.")
                for name in (MAIN, *([] if alias is None else [alias])):
                    if name in refs.branches:
                        self._check_owner(client, name, refs.branches[name], content)
                start = refs.branches.get(content.version, refs.branches.get(MAIN))
                listed = client.listing(start) if start else {}
                same = _same(content, listed)
                stored = client.stored(item for item in content.items if item.path not in same)
                present = frozenset(same | {item.path for item in content.items if item.sha256 in stored})
        return Transfer(f"hf:{self.repository}", content, present, alias)

    def push(self, transfer: Transfer, tick: Progress) -> Receipt:
        """The version's branch, checked, then main."""
        content = transfer.content
        with self._client() as client:
            refs = client.refs()
            if refs is None:
                client.create(private=not self.public)
            start = client.commit_of(MAIN)
            if refs is None or content.version not in refs.branches:
                client.branch(content.version, start)
            head = client.commit_of(content.version)
            listed = client.listing(head)
            missing = [item for item in content.items if item.path not in _same(content, listed)]
            extra = _extra(content, listed)
            if missing or extra:
                client.send(transfer, missing, extra, head, tick)
                head = client.commit_of(content.version)
            _check(client, content, head, content.version)
            self._point(client, MAIN, start, head, content)
        return Receipt(f"hf:{self.repository}@{content.version}", head)

    def confirm(self, receipt: Receipt, content: Content) -> None:
        """List the version's commit and main again; the Hub makes no commit that names bytes it lacks."""
        with self._client() as client:
            _check(client, content, receipt.digest, content.version)
            _check_branch(client, content, MAIN)

    def move_alias(self, receipt: Receipt, content: Content, alias: str) -> None:
        """A branch, made at the version's commit or moved there by one commit."""
        with self._client() as client:
            refs = client.refs()
            head = None if refs is None else refs.branches.get(alias)
            if head is None:
                client.branch(alias, receipt.digest)
                head = client.commit_of(alias)
            self._check_owner(client, alias, head, content)
            self._point(client, alias, head, receipt.digest, content)
            _check_branch(client, content, alias)

    def fetch(self, reference: str, into: Path, tick: Progress) -> None:
        """What the SHA256SUMS of one commit names, by way of the client's cache: what came whole isn't sent again."""
        wanted = open_hub(reference.removeprefix("hf:").removeprefix("//"))
        with wanted._client() as client:
            commit = client.commit_of(wanted.revision or MAIN)
            for name in (SUMS, MANIFEST, *({SIGNATURE} & client.listing(commit).keys())):
                _receive(client.download(name, commit), into / name, None, SMALL, tick)
            for path, digest in listed_in(into).items():
                try:
                    _receive(client.download(path, commit), into / path, digest, MOST, tick)
                except PublishError:  # a damaged file in the cache stays damaged until it is asked for anew
                    (into / path).unlink()
                    _receive(client.download(path, commit, again=True), into / path, digest, MOST, tick)

    def _client(self) -> "AbstractContextManager[HubClient]":
        from export.publish.hub_client import calm

        return calm(self.repository)

    def _point(self, client: "HubClient", branch: str, head: str, source: str, content: Content) -> None:
        """Make a branch whose head is `head` hold what the commit `source` holds, by one commit."""
        listed, wanted = client.listing(head), client.listing(source)
        changed = [path for path, file in wanted.items() if listed.get(path) != file]
        if changed or listed.keys() - wanted.keys():
            message = f"{'Release' if branch == MAIN else branch + ':'} {content.version}"
            made = client.copy(changed, listed.keys() - wanted.keys(), source, branch, head, message)
            if not made and client.listing(client.commit_of(branch)) != wanted:
                raise PublishError(f"{self.repository}: {branch} moved meanwhile. Push again.")

    def _check_owner(self, client: "HubClient", branch: str, commit: str, content: Content) -> None:
        """A branch that holds a variant must hold one of the same model; one that holds something else isn't ours."""
        listed = client.listing(commit)
        if MANIFEST not in listed:
            if foreign := sorted(listed.keys() - {_README, "LICENSE"}):
                raise PublishError(
                    f"{branch} of {self.repository} must be empty or hold a variant; it has no {MANIFEST}, but "
                    f"{', '.join(foreign[:3])}. Give another repository, or empty that branch."
                )
            return
        with scratch("hub") as place:
            _receive(client.download(MANIFEST, commit), place / MANIFEST, None, SMALL, _unseen)
            source = read_json(place / MANIFEST).get("source")
        check_owner(branch, str(source.get("name")) if isinstance(source, dict) else None, content)


def _unseen(_: int) -> None:
    """Bytes of which nobody is told."""


def _receive(file: Path, into: Path, sha256: str | None, limit: int, tick: Progress) -> None:
    receive(pieces_of(file, _unseen), into, sha256, limit, tick)


def _same(content: Content, listed: Mapping[str, "Listed"]) -> set[str]:
    """Paths that are listed with the content's own digests."""
    return {
        item.path
        for item in content.items
        if (file := listed.get(item.path)) is not None and _digest(content, item, file) == (file.sha256 or file.oid)
    }


def _extra(content: Content, listed: Mapping[str, "Listed"]) -> set[str]:
    """Paths that the content hasn't, but for a signature that somebody else gave to this very version."""
    signed = {SIGNATURE} if MANIFEST in _same(content, listed) else set()
    return listed.keys() - {item.path for item in content.items} - signed


def _digest(content: Content, item: Item, file: "Listed") -> str:
    """Ours, of the kind that the Hub states: SHA-256 of a large file, else git's own, of small files alone."""
    if file.sha256 is not None:
        return item.sha256
    if file.size != item.size:
        return ""
    digest = hashlib.sha1(b"blob %d\0" % item.size, usedforsecurity=False)
    for piece in pieces_of(content.directory / item.path, _unseen):
        digest.update(piece)
    return digest.hexdigest()


def _check_branch(client: "HubClient", content: Content, branch: str) -> None:
    """The same of what a branch names, unless another push has moved it on to another version since."""
    commit = client.commit_of(branch)
    listed = client.listing(commit)
    if MANIFEST not in listed or MANIFEST in _same(content, listed):
        _check(client, content, commit, branch)


def _check(client: "HubClient", content: Content, commit: str, branch: str) -> None:
    """A commit lists the content's files with their digests, and no others."""
    listed = client.listing(commit)
    for item in content.items:
        file = listed.get(item.path)
        if file is None:
            raise PublishError(f"{client.repository}: {branch} must hold {item.path}, it doesn't list it. Push again.")
        ours, theirs = _digest(content, item, file), file.sha256 or file.oid
        if ours != theirs:
            raise differs(f"{client.repository}@{branch}: {item.path}", item.sha256, theirs)
    if extra := sorted(_extra(content, listed)):
        raise PublishError(
            f"{client.repository}: {branch} must hold the variant alone, it also lists {extra[0]}. Push again."
        )
