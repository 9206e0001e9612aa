"""One repository of an OCI registry: its blobs, manifests and tags, by the distribution API.

Large blobs are sent in chunks and read in pieces; what was cut goes on where it was cut, as far as the registry knows.
https://github.com/opencontainers/distribution-spec
"""

import hashlib
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from export.publish.model_pack import MANIFEST_TYPE
from export.publish.publisher import differs, scrubbed
from export.publish.web import Answer, PassingError, Reply, Web, pieces_in, reply_of, split, steadily
from transform.errors import PublishError
from transform.strict_json import Record

CHUNK = 64 << 20  # bytes per request of a large blob: what a cut connection costs at most
_NEIGHBOURS = 20  # repositories that are asked for a blob
_NAME = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
NAME = rf"{_NAME}(?:/{_NAME})*"  # of a repository
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Body = Callable[[int, int], Iterable[bytes]]  # a blob's bytes from one place to another


class _LostError(PassingError):
    """The registry knows nothing of an upload that it began."""


class Repository:
    """`base`: the registry's URL; `name`: the repository's."""

    def __init__(self, base: str, name: str) -> None:
        self.name = name
        self._base = base
        self._web = Web(base)
        self.host = self._web.host
        self._scope = f"repository:{name}:pull,push"

    def insist(self) -> None:
        """Raise PublishError where nobody speaks the distribution API: to such a server every file is absent."""
        found = self._web.ask("GET", f"{self._base}/v2/", self._scope)
        kind = found.headers.get_content_type()
        if found.status != 200 or kind == "text/html":
            raise PublishError(
                f"{self.host} must be an OCI registry, which answers 200 to GET /v2/, it answers {found.status} with "
                f"{scrubbed(kind)}. Check the address."
            )

    def has(self, digest: str, size: int, other: str | None = None) -> bool:
        """Whether this repository, or an`other` one, has a blob; PublishError where it is another one there."""
        scope = f"repository:{other}:pull" if other else self._scope
        found = self._web.ask("HEAD", self._url(f"blobs/{digest}", other), scope)
        length, said = (found.headers.get(name) for name in ("Content-Length", "Docker-Content-Digest"))
        if found.status == 200 and (length != str(size) or said not in (None, digest)):
            raise PublishError(
                f"{self.host} must have {size:,} bytes with the digest {digest[:19]}…, it says {length} with "
                f"{(said or digest)[:19]}…. The registry is damaged: ask its operator."
            )
        return found.status == 200

    def neighbours(self) -> list[str]:
        """Repositories beside this one, where the registry lists them to us."""
        try:
            found = self._web.ask("GET", f"{self._base}/v2/_catalog?n=1000", "registry:catalog:*")
            listed = found.json(self.host).get("repositories") if found.status == 200 else None
        except PublishError:
            return []
        folder = self.name.rpartition("/")[0]
        names = [str(name) for name in listed] if isinstance(listed, list) else []
        beside = [n for n in names if n != self.name and n.rpartition("/")[0] == folder and re.fullmatch(NAME, n)]
        return beside[:_NEIGHBOURS]

    def upload(self, digest: str, size: int, body: Body, other: str | None = None) -> bool:
        """Bring a blob there; False: the registry took it from the `other` repository, and nothing was sent."""
        return steadily(lambda: self._upload(digest, size, body, other), f"{self.host}, an upload of {size:,} bytes")

    def _upload(self, digest: str, size: int, body: Body, other: str | None) -> bool:
        mount = f"?{urllib.parse.urlencode({'mount': digest, 'from': other})}" if other else ""
        scope = f"{self._scope} repository:{other}:pull" if other else self._scope
        begun = self._send("POST", self._url(f"blobs/uploads/{mount}"), scope)
        if begun.status == 201 and other:
            return False
        place = self._location(self._expected(begun, 202, "an upload"))
        rest = size
        if size > CHUNK:
            place, rest = self._send_chunks(place, size, body), 0
        finish = f"{place}{'&' if '?' in place else '?'}{urllib.parse.urlencode({'digest': digest})}"
        done = self._send("PUT", finish, self._scope, {}, lambda: body(size - rest, size), rest)
        if done.status == 404:
            raise _LostError(f"{self.host} lost an upload")
        self._expected(done, 201, f"the upload of {digest[:19]}…")
        return True

    def _send_chunks(self, place: str, size: int, body: Body) -> str:
        """Send a large blob in parts -> where to finish it. After a cut the registry is asked how far it came."""
        at, unsure = 0, False

        def step() -> None:
            nonlocal place, at, unsure
            if unsure:
                place, at = self._how_far(place)
            unsure, start, end = True, at, min(at + CHUNK, size)
            headers = {"Content-Range": f"{start}-{end - 1}"}
            sent = self._send("PATCH", place, self._scope, headers, lambda: body(start, end), end - start)
            if sent.status in (400, 404, 416):
                raise _LostError(f"{self.host} lost an upload: {sent.said}")
            place = self._location(self._expected(sent, 202, "a part of an upload"))
            at, unsure = end, False

        while at < size:
            steadily(step, self.host, final=(_LostError,))
        return place

    def _how_far(self, place: str) -> tuple[str, int]:
        found = self._send("GET", place, self._scope)
        match = re.fullmatch(r"(?:bytes=)?0-(\d{1,18})", found.headers.get("Range", ""))
        if found.status != 204 or match is None:
            raise _LostError(f"{self.host} lost an upload")
        return self._location(found), int(match[1]) + 1 if match[1] != "0" else 0

    def blob(self, digest: str, size: int) -> Iterator[bytes]:
        """A blob's bytes, in pieces; a cut connection goes on where it was cut."""
        at, url = 0, self._url(f"blobs/{digest}")
        while at < size:
            with closing(self._open_blob(url, at)) as answer:
                skip = at if answer.status == 200 else 0  # Range isn't known everywhere
                before = at
                for piece in pieces_in(answer):
                    skipped = min(skip, len(piece))
                    skip -= skipped
                    at += len(piece) - skipped
                    yield piece[skipped:]
            if at == before:
                raise PublishError(
                    f"{self.host} must send {size:,} bytes of {digest[:19]}…, it stops after {at:,}. Try again later, "
                    "or push the version again."
                )

    def _open_blob(self, url: str, at: int) -> Answer:
        headers = {"Range": f"bytes={at}-"} if at else {}
        answer = steadily(lambda: self._web.send("GET", url, self._scope, headers), self.host)
        if answer.status not in (200, 206):
            with closing(answer):
                said = reply_of(answer, self.host).said
            raise PublishError(f"{self.host}/{self.name} lacks a file of this version: {said}. Push it again.")
        return answer

    def manifest(self, named: str) -> tuple[bytes, Record] | None:
        """(its bytes, the same parsed) of a tag or digest; None: there is none."""
        found = self._web.ask("GET", self._url(f"manifests/{named}"), self._scope, {"Accept": MANIFEST_TYPE})
        if found.status == 404:
            return None
        data = self._expected(found, 200, named).data
        wanted = named if DIGEST.fullmatch(named) else found.headers.get("Docker-Content-Digest", "")
        if DIGEST.fullmatch(wanted) and wanted != digest_of_bytes(data):
            raise differs(f"the manifest {named}", wanted[7:], digest_of_bytes(data)[7:])
        return data, found.json(self.host)

    def put_manifest(self, tag: str, manifest: bytes) -> None:
        """Make a tag name a manifest."""
        headers = {"Content-Type": MANIFEST_TYPE}
        done = self._web.ask("PUT", self._url(f"manifests/{tag}"), self._scope, headers, manifest)
        self._expected(done, 201, f"the tag {tag}")

    def tags(self) -> list[str]:
        """Some of its tags, sorted; none where it doesn't say."""
        try:
            found = self._web.ask("GET", self._url("tags/list?n=100"), self._scope)
            tags = found.json(self.host).get("tags") if found.status == 200 else None
        except PublishError:
            return []
        return sorted(scrubbed(tag)[:128] for tag in tags) if isinstance(tags, list) else []

    def _url(self, rest: str, other: str | None = None) -> str:
        return f"{self._base}/v2/{other or self.name}/{rest}"

    def _send(
        self,
        method: str,
        url: str,
        scope: str,
        headers: dict[str, str] | None = None,
        body: Callable[[], Iterable[bytes]] | None = None,
        size: int = 0,
    ) -> Reply:
        with closing(self._web.send(method, url, scope, headers or {}, body, size)) as answer:
            return reply_of(answer, self.host)

    def _expected(self, reply: Reply, status: int, what: str) -> Reply:
        if reply.status != status:
            raise PublishError(f"{what}: {self.host} answers {reply.said}. Check the registry, then push again.")
        return reply

    def _location(self, reply: Reply) -> str:
        location = reply.headers.get("Location")
        if location is None:
            raise PublishError(f"{self.host} must say where an upload goes, it doesn't. Ask its operator.")
        split(location, self.host)
        url = urllib.parse.urljoin(f"{self._base}/", location)
        if not url.startswith(("https://", f"{self._base}/")):
            raise PublishError(f"{self.host} must not send an upload to a place without TLS. Ask its operator.")
        return url


def digest_of_bytes(data: bytes) -> str:
    """`sha256:` and hex."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
