"""What every registry does for us, and what all of them share: the order of steps, and words free of credentials.

    plan → push → confirm → move_alias                                  fetch

`plan` only reads. `push` moves what the plan says, `manifest.json` last, and is safe to repeat: what an earlier run
left counts as present. `confirm` reads back what the registry holds. An alias moves after that alone, so it never names
half a variant or one that arrived damaged.

Errors that leave a publisher are KnobcastErrors; `plainly` makes them of a client's own. Clients that are heavy or
optional are imported inside functions.
"""

import errno
import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from export.files.check import check_files
from export.files.integrity import read_sums, sha256_file
from export.publish.content import Content, Item, digest_in
from transform.disk import full_disk, size_of
from transform.errors import KnobcastError, PublishError, VerificationError
from transform.extras import lacking
from transform.ownership import MANIFEST, SUMS
from transform.progress import Progress, Say
from transform.regular_file import IrregularError, open_regular
from transform.stage import staged
from transform.strict_json import MAX_JSON_BYTES, Record

PIECE = 1 << 20  # bytes that are read, sent and hashed at a time
SMALL = MAX_JSON_BYTES  # the most bytes of a manifest or of SHA256SUMS
MOST = 1 << 46  # no file is as large; where a registry doesn't say how large one is
_ALIAS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}")


@dataclass(frozen=True)
class Transfer:
    """What a push will do. `target`: as the user wrote it; `present`: paths of items whose bytes the registry has
    already, wherever it keeps them, so that none of them moves; `alias`: what is to name the version afterwards."""

    target: str
    content: Content
    present: frozenset[str]
    alias: str | None = None

    @property
    def moving(self) -> tuple[Item, ...]:
        """Items whose bytes move, in the order of the content."""
        return tuple(item for item in self.content.items if item.path not in self.present)

    @property
    def bytes(self) -> int:
        """That will move."""
        return sum(item.size for item in self.moving)

    def as_dict(self) -> Record:
        """For --json and --dry-run."""
        return {
            "target": scrubbed(self.target),
            "name": self.content.name,
            "version": self.content.version,
            "digest": self.content.digest,
            "alias": self.alias,
            "bytes": self.content.bytes,
            "bytes_to_move": self.bytes,
            "files": [
                {"path": item.path, "bytes": item.size, "sha256": item.sha256, "present": item.path in self.present}
                for item in self.content.items
            ],
            "tags": dict(self.content.tags),
        }


@dataclass(frozen=True)
class Receipt:
    """`reference`: what `knobcast pull` takes to get exactly this version; `digest`: what the registry itself calls it,
    or the content's."""

    reference: str
    digest: str


class Publisher(Protocol):
    """One place in one registry. All methods raise KnobcastErrors whose text holds no credentials."""

    def plan(self, content: Content, alias: str | None = None) -> Transfer:
        """What is there already and what would move; writes nothing. An alias that names another model is refused."""

    def push(self, transfer: Transfer, tick: Progress) -> Receipt:
        """Move what the plan says, the manifest last; `tick` is told bytes. What was interrupted is repeated whole."""

    def confirm(self, receipt: Receipt, content: Content) -> None:
        """Read back from the registry: every file has its digest, or PublishError names the one that hasn't."""

    def move_alias(self, receipt: Receipt, content: Content, alias: str) -> None:
        """Make `alias` name the version of `receipt`; in one step where the registry can."""

    def fetch(self, reference: str, into: Path, tick: Progress) -> None:
        """The files of a version or alias into an empty folder. What they hold is checked by `pull`."""


def publish(publisher: Publisher, transfer: Transfer, say: Say, tick: Progress) -> Receipt:
    """Push what was planned, confirm it, then move the alias."""
    say("push")
    receipt = publisher.push(transfer, tick)
    say("confirm")
    publisher.confirm(receipt, transfer.content)
    if transfer.alias is not None:
        say("alias")
        publisher.move_alias(receipt, transfer.content, transfer.alias)
    return receipt


def pull(publisher: Publisher, reference: str, out: Path, *, force: bool, say: Say, tick: Progress) -> Record:
    """Fetch a version beside `out`, check it as `verify --level files` does and rename it: whole or not at all."""
    with staged(out, force, called="OUT") as stage:
        say("pull")
        publisher.fetch(reference, stage, tick)
        if not (stage / MANIFEST).is_file():
            raise PublishError(f"{scrubbed(reference)}: holds no {MANIFEST}, so it is no variant. Check the reference.")
        digest = sha256_file(stage / MANIFEST)
        named = digest_in(reference.rstrip("/"))
        if named is not None and not digest.startswith(named):
            raise PublishError(
                f"{scrubbed(reference)} must hold the manifest whose digest begins with {named}, it begins with "
                f"{digest[:12]}: the version was overwritten. Pull another one, or push it again."
            )
        try:
            checked = check_files(stage, say)
        except VerificationError as error:
            raise VerificationError(f"{scrubbed(reference)} arrived, but isn't whole: {error}") from error
    return {"reference": scrubbed(reference), "out": str(out), "digest": digest, "verification": "passed", **checked}


def insist_on(package: str) -> None:
    """Refuse where a client isn't installed: said before files are read, which may take minutes."""
    if importlib.util.find_spec(package) is None:
        raise PublishError(lacking(package))


def check_alias(alias: str) -> None:
    """Refuse what isn't a valid tag, branch and file name everywhere, or looks like a version."""
    if not _ALIAS.fullmatch(alias) or ".." in alias or alias.endswith((".lock", ".")):
        raise PublishError(
            f"an alias must be letters, digits, '_', '-' and single dots, at most 64, got {alias[:80]!r}. "
            "Give one such as edge-prod."
        )
    if digest_in(alias) is not None:
        raise PublishError(f"an alias must not end as versions do, got {alias!r}. Give one such as edge-prod.")


def check_owner(alias: str, owner: str | None, content: Content) -> None:
    """Refuse to move an alias that names a version of the model `owner` to one of another model."""
    if owner is not None and owner != content.name:
        theirs = owner[:80] or "something else"
        raise PublishError(
            f"an alias stays with its model: {alias} names a version of {theirs}, this is one of {content.name}. "
            "Give another --alias, or remove that one there first."
        )


def pieces_of(path: Path, tick: Progress) -> Iterator[bytes]:
    """A regular file's bytes, a piece at a time."""
    with regular(path) as file:
        while piece := file.read(PIECE):
            yield piece
            tick(len(piece))


def regular(path: Path) -> BinaryIO:
    """A file to read; raises PublishError for a pipe or a device, at which a reader might wait for ever."""
    try:
        return open_regular(path)
    except IrregularError as error:
        raise PublishError(f"{path}: {error}. Push the version again.") from None


def receive(pieces: Iterable[bytes], path: Path, sha256: str | None, limit: int, tick: Progress) -> None:
    """Write pieces to a new file; raises PublishError if there are more than `limit` bytes or the digest differs."""
    digest, size = hashlib.sha256(), 0
    with _room_for(path), _new(path) as file:
        for piece in pieces:
            size += len(piece)
            if size > limit:
                raise PublishError(
                    f"{path.name} must have at most {limit:,} bytes, the registry sends more. Push again."
                )
            digest.update(piece)
            file.write(piece)
            tick(len(piece))
    if sha256 is not None and digest.hexdigest() != sha256:
        raise differs(path.name, sha256, digest.hexdigest())


def _new(path: Path) -> BinaryIO:
    """A new file, whose name may come from anywhere: too long, or another file's where a folder must be."""
    try:
        with _room_for(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
    except OSError as error:
        raise PublishError(
            f"{path.name[:80]}: no file can have this name here ({error.strerror}); nothing was written. "
            "Pull another version, or choose another OUT."
        ) from error


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """A full disk is none of the registry's faults, whose errors it would be taken for."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise full_disk(
            path.parent, size_of(path.parent), "of it were written", "Free space or choose another OUT."
        ) from error


def digest_of(pieces: Iterable[bytes], size: int) -> str:
    """SHA-256 of pieces, hex. One piece more than `size` bytes is enough to differ from what has that size."""
    digest, seen = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        seen += len(piece)
        if seen > size:
            break
    return digest.hexdigest()


def differs(path: str, wanted: str, found: str) -> PublishError:
    """The error for a file that the registry holds with another digest."""
    return PublishError(
        f"{path} must have the SHA-256 {wanted[:12]}…, the registry holds {found[:12]}…: it was damaged on the way or "
        "there. Push it again."
    )


def listed_in(stage: Path) -> Mapping[str, str]:
    """Path -> SHA-256 of what a fetched SHA256SUMS names; raises VerificationError for names that lead out."""
    _, listed = read_sums(stage)
    if taken := listed.keys() & {SUMS, MANIFEST}:
        raise PublishError(f"{SUMS} must not name {min(taken)}. Push the variant again.")
    return listed


_SECRETS = (
    (re.compile(r"(?i)\b([a-z][a-z0-9+.\-]*://)(?:[^/\s@'\"]*|[^/\s:@'\"]*:[^\s@'\"]*)@(?!sha256:)"), r"\1"),
    (re.compile(r"(?i)\b((?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:bearer|basic)\s+)?[^\s'\",]+"), r"\1…"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/_.~=\-]{8,}"), r"\1 …"),
    (
        re.compile(
            r"(?i)([?&;](?:x-amz-(?:signature|credential|security-token)|signature|sig|token|access_token|password|"
            r"_state)=)[^&\s'\"]+"
        ),
        r"\1…",
    ),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_…"),
)


def holds_login(rest: str) -> bool:
    """Whether what follows `scheme://` begins with `USER@` or `USER:PASSWORD@`, also where that has a slash in it."""
    return re.match(r"[^/@]*@|[^/@:]*:[^@]*@(?!sha256:)", rest) is not None


def scrubbed(text: object) -> str:
    """A text without what may be a credential: user and password of URLs, authorization headers, signatures, tokens;
    and without what would steer a terminal."""
    found = "".join(c if c.isprintable() else " " for c in str(text))
    for pattern, instead in _SECRETS:
        found = pattern.sub(instead, found)
    return found


@contextmanager
def plainly(what: str, way_out: str, kinds: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Errors of these kinds → PublishError "what: its text. way_out", scrubbed and short; ours and others pass."""
    try:
        yield
    except KnobcastError:
        raise
    except kinds as error:
        said = " ".join(scrubbed(error).split())[:300] or type(error).__name__
        # no chain: the client's error may hold what was scrubbed here
        raise PublishError(f"{scrubbed(what)}: {said}. {way_out}") from None
