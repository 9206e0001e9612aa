"""A stand-in for the Hugging Face Hub: a server that speaks its protocol as far as huggingface_hub's client uses it.

Repositories, branches, uploads by the large file storage with their SHA-256 checked, commits, listings, downloads with
ranges; Xet storage where a test gives it a folder. A `Fault` makes it misbehave as servers do. What it accepts proves
nothing about the Hub.
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support import xet_store
from tests.support.http_faults import Fault, strike
from tests.support.hub_store import Entry, Repository, Store, pointer
from transform.strict_json import Record

SIGNATURE = "signature=secret-of-the-storage"
TOKEN = "hf_aTokenThatNobodyMaySee"
HUB_FILE = "hub.pickle"  # what a stand-in keeps besides blobs
_LARGE = (".safetensors", ".onnx", ".data", ".npz")  # as the Hub's own .gitattributes says of new repositories
_PIECE = 1 << 20
_SAVING = threading.Lock()


@dataclass
class HubStandIn:
    """A running stand-in: what it keeps, the requests it saw, and what is to go wrong."""

    url: str
    storage: str  # another host, as the Hub's storage is: what is meant for the Hub alone must not go there
    store: Store
    requests: list[str] = field(default_factory=list)
    received: dict[str, int] = field(default_factory=dict)  # blob -> bytes of it that arrived
    faults: list[Fault] = field(default_factory=list)
    xet: Path | None = None  # the folder of its Xet storage
    kept: Path | None = None  # the file that says what it has, where it outlives the process

    def fault(self, request: str, kind: str) -> Fault | None:
        return strike(self.faults, request, kind)


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # answers are small, and nobody waits for more of them
    hub: HubStandIn

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 -- the names that http.server calls

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        said = f"{self.command} {parts.path}"
        self.hub.requests.append(said)
        self.taken = False
        try:
            if fault := self.hub.fault(said, "status"):
                raise _RefusedError(fault.status, f"the stand-in answers {fault.status} here")
            if parts.path.startswith("/storage/"):
                self._storage(parts.path, said)
                return
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise _RefusedError(401, "Invalid username or password.")
            for pattern, answer in _ROUTES:
                if match := re.fullmatch(pattern, said):
                    answer(self, *(unquote(part) for part in match.groups()))
                    return
            raise _RefusedError(404, f"the stand-in has no {said}")
        except _RefusedError as refused:
            self._json({"error": str(refused)}, refused.status, refused)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    # bodies

    def _pieces(self) -> Iterator[bytes]:
        self.taken = True
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            piece = self.rfile.read(min(left, _PIECE))
            if not piece:
                raise ConnectionResetError
            left -= len(piece)
            yield piece

    def _body(self) -> bytes:
        return b"".join(self._pieces())

    def _json(
        self, value: object, status: int = 200, refused: _RefusedError | None = None,
        headers: Mapping[str, object] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        if not self.taken:
            for _ in self._pieces():
                pass
        if self.hub.kept and refused is None and self.command in ("POST", "PUT"):
            with _SAVING:  # before anybody is told
                self.hub.store.save(self.hub.kept)
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, said in headers.items():
            self.send_header(name, str(said))
        if refused is not None:
            self.send_header("X-Error-Message", str(refused))
            if refused.code:
                self.send_header("X-Error-Code", refused.code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # repositories

    def _repository(self, name: str) -> Repository:
        if name not in self.hub.store.repositories:
            raise _RefusedError(404, "Repository not found", "RepoNotFound")
        return self.hub.store.repositories[name]

    def _commit_of(self, name: str, revision: str) -> tuple[Repository, str]:
        repository = self._repository(name)
        found = repository.find(revision)
        if found is None:
            raise _RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, found

    def _create(self) -> None:
        said = json.loads(self._body())
        name = f"{said['organization'] or 'somebody'}/{said['name']}"
        if name in self.hub.store.repositories:
            raise _RefusedError(409, "You already created this model repo")
        private = said.get("private", said.get("visibility") == "private")
        self.hub.store.repositories[name] = Repository(bool(private))
        self._json({"url": f"{self.hub.url}/{name}"})

    def _who(self) -> None:
        self._json({"type": "user", "name": "somebody", "orgs": []})

    def _info(self, name: str, revision: str = "main") -> None:
        repository, sha = self._commit_of(name, revision)
        files = [{"rfilename": path} for path in repository.commits[sha]]
        self._json({"_id": name, "id": name, "sha": sha, "private": repository.private, "siblings": files, "tags": []})

    def _refs(self, name: str) -> None:
        repository = self._repository(name)
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": sha}
            for branch, sha in repository.branches.items()
        ]
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha} for tag, sha in repository.tags.items()]
        self._json({"branches": branches, "converts": [], "tags": tags})

    def _branch(self, name: str, branch: str) -> None:
        said = json.loads(self._body() or b"{}")
        repository, sha = self._commit_of(name, said.get("startingPoint", "main"))
        if branch in repository.branches:
            raise _RefusedError(409, "Reference already exists")
        repository.branches[branch] = sha
        self._json({})

    # what is sent

    def _preupload(self, name: str, revision: str) -> None:
        repository, sha = self._commit_of(name, revision)
        tree = repository.commits[sha]
        answers: list[Record] = []
        for file in json.loads(self._body())["files"]:
            path = file["path"]
            large = path.endswith(_LARGE) or file["size"] > 10 << 20
            entry = tree.get(path)
            known = {} if entry is None else {"oid": entry.sha256 or entry.oid}
            answers.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **known})
        self._json({"files": answers})

    def _batch(self, name: str) -> None:
        repository = self._repository(name)
        answers: list[Record] = []
        for wanted in json.loads(self._body())["objects"]:
            oid = wanted["oid"]
            answers.append({"oid": oid, "size": wanted["size"]})
            if oid not in repository.blobs:
                answers[-1]["actions"] = {
                    "upload": {"href": f"{self.hub.storage}/storage/{name}/{oid}?{SIGNATURE}"},
                    "verify": {"href": f"{self.hub.url}/{name}.git/info/lfs/verify"},
                }
        self._json({"transfer": "basic", "objects": answers})

    def _storage(self, path: str, said: str) -> None:
        name, _, oid = path.removeprefix("/storage/").rpartition("/")
        if self.command == "GET":
            self._send(self.hub.store.blob(oid), said)
            return
        cut = self.hub.fault(said, "cut")
        digest, half = hashlib.sha256(), self.hub.store.folder / f"{oid}.{threading.get_ident()}"
        length = int(self.headers.get("Content-Length") or 0)
        with half.open("wb") as file:
            for piece in self._pieces():
                digest.update(piece)
                file.write(piece)
                self.hub.received[oid] = self.hub.received.get(oid, 0) + len(piece)
                if cut and file.tell() >= length // 2:
                    self.connection.close()
                    raise ConnectionResetError
        if digest.hexdigest() != oid:
            raise _RefusedError(400, "the content does not have the digest that was announced")
        if not self.hub.fault(said, "lose"):
            half.replace(self.hub.store.blob(oid))
            self.hub.store.repositories[name].blobs.add(oid)
        self._json({})

    def _verify(self, name: str) -> None:
        self._body()
        self._json({})

    def _commit(self, name: str, branch: str) -> None:
        lines = [json.loads(line) for line in self._body().splitlines()]
        repository, sha = self._commit_of(name, branch)
        said = f"{self.command} {self.path}"
        if self.hub.fault(said, "moved"):
            sha = repository.commit(branch, {**repository.commits[sha], "moved": Entry(b"by another", 10)})
        expected = lines[0]["value"].get("parentCommit", sha)
        if branch not in repository.branches or expected != sha:
            raise _RefusedError(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(repository.commits[sha])
        for line in lines[1:]:
            value, path = line["value"], line["value"]["path"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                tree[path] = Entry(content, len(content))
            elif line["key"] == "lfsFile":
                tree[path] = pointer(value["oid"], self._size(repository, value["oid"], path))
            elif path in tree:
                del tree[path]
            else:
                raise _RefusedError(400, f"A file with this name doesn't exist: {path}")
        made = repository.commit(branch, tree)
        if self.hub.fault(said, "mute"):
            raise ConnectionResetError
        self._json({"success": True, "commitOid": made, "commitUrl": f"{self.hub.url}/{name}/commit/{made}"})

    def _size(self, repository: Repository, oid: str, path: str) -> int:
        if self.hub.xet and oid in (found := xet_store.stored(self.hub.xet)):
            repository.blobs.add(oid)
            return found[oid].size
        if oid not in repository.blobs:
            raise _RefusedError(400, f"LFS pointer pointed to a file that does not exist: {path}")
        return self.hub.store.blob(oid).stat().st_size

    def _xet_token(self, name: str, _: str) -> None:
        self._repository(name)
        if self.hub.xet is None:
            raise _RefusedError(404, "the stand-in has no Xet storage")
        said = {"casUrl": xet_store.address(self.hub.xet), "accessToken": "short-lived", "exp": int(time.time()) + 3600}
        self._json(said, headers={
            "X-Xet-Cas-Url": said["casUrl"], "X-Xet-Access-Token": said["accessToken"],
            "X-Xet-Token-Expiration": said["exp"],
        })  # fmt: skip

    def _validate(self) -> None:
        """One rule of the Hub's many."""
        broken = "\nlicense: [" in json.loads(self._body())["content"]
        wrong = [{"message": '"license" must be a string'}] if broken else []
        self._json({"errors": wrong, "warnings": []}, 400 if broken else 200)

    # what is read back

    def _listed(self, tree: dict[str, Entry], paths: list[str], said: str) -> None:
        answers = [tree[path].as_dict(path) for path in paths if path in tree]
        if answers and self.hub.fault(said, "oid"):
            wrong = {"oid": "0" * 40} | (
                {"lfs": {**answers[-1]["lfs"], "oid": "0" * 64}} if "lfs" in answers[-1] else {}
            )
            answers[-1] |= wrong
        self._json(answers)

    def _paths(self, name: str, revision: str) -> None:
        paths = parse_qs(self._body().decode())["paths"]
        repository, sha = self._commit_of(name, revision)
        self._listed(repository.commits[sha], paths, f"{self.command} {self.path}")

    def _tree(self, name: str, revision: str) -> None:
        repository, sha = self._commit_of(name, revision)
        tree = repository.commits[sha]
        self._listed(tree, sorted(tree), f"{self.command} {self.path}")

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository, sha = self._commit_of(name, revision)
        entry = repository.commits[sha].get(path)
        if entry is None:
            raise _RefusedError(404, "Entry not found", "EntryNotFound")
        self.send_response(200 if entry.sha256 is None else 302)
        self.send_header("X-Repo-Commit", sha)
        self.send_header("ETag", f'"{entry.oid}"')
        if entry.sha256 is not None:
            self.send_header("X-Linked-Etag", f'"{entry.sha256}"')
            self.send_header("X-Linked-Size", str(entry.size))
            if self.hub.xet and entry.sha256 in (found := xet_store.stored(self.hub.xet)):
                self.send_header("X-Xet-Hash", found[entry.sha256].hash)
                route = f"{self.hub.url}/api/models/{name}/xet-read-token/{sha}"
                self.send_header("X-Xet-Refresh-Route", route)
            self.send_header("Location", f"{self.hub.storage}/storage/{name}/{entry.sha256}?{SIGNATURE}")
            self.send_header("Content-Length", "0")
        else:
            self.send_header("Content-Length", str(entry.size))
        self.end_headers()
        if entry.sha256 is None and self.command != "HEAD":
            self.wfile.write(entry.content)

    def _send(self, path: Path, said: str) -> None:
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first = int(wanted[1]) if wanted else 0
        last = min(int(wanted[2]) if wanted and wanted[2] else size - 1, size - 1)
        if first >= size > 0:
            raise _RefusedError(416, "Range Not Satisfiable")
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        left = last - first + 1
        if self.hub.fault(said, "truncate"):
            left //= 2
            self.close_connection = True
        with path.open("rb") as file:
            file.seek(first)
            while left > 0 and (piece := file.read(min(left, _PIECE))):
                self.wfile.write(piece)
                left -= len(piece)


_ID = r"([^/]+/[^/]+)"
_ROUTES: tuple[tuple[str, Callable[..., None]], ...] = (
    ("GET /api/whoami-v2", _Handler._who),
    ("POST /api/repos/create", _Handler._create),
    ("POST /api/validate-yaml", _Handler._validate),
    (f"GET /api/models/{_ID}", _Handler._info),
    (f"GET /api/models/{_ID}/revision/([^/]+)", _Handler._info),
    (f"GET /api/models/{_ID}/refs", _Handler._refs),
    (f"POST /api/models/{_ID}/branch/([^/]+)", _Handler._branch),
    (f"POST /api/models/{_ID}/preupload/([^/]+)", _Handler._preupload),
    (f"GET /api/models/{_ID}/xet-(?:read|write)-token/([^/]+)", _Handler._xet_token),
    (f"POST /api/models/{_ID}/commit/([^/]+)", _Handler._commit),
    (f"POST /api/models/{_ID}/paths-info/([^/]+)", _Handler._paths),
    (f"GET /api/models/{_ID}/tree/([^/]+)", _Handler._tree),
    (rf"POST /{_ID}\.git/info/lfs/objects/batch", _Handler._batch),
    (rf"POST /{_ID}\.git/info/lfs/verify", _Handler._verify),
    (f"(?:GET|HEAD) /{_ID}/resolve/([^/]+)/(.+)", _Handler._resolve),
)


@contextmanager
def hub_stand_in(folder: Path, port: int = 0, kept: Path | None = None) -> Iterator[HubStandIn]:
    """A stand-in on a port of this machine, 0: a free one, that keeps its blobs in `folder`, all else in a file."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    server.daemon_threads = True
    port = server.server_address[1]
    store = Store.load(kept, folder) if kept else Store(folder)
    hub = HubStandIn(f"http://127.0.0.1:{port}", f"http://localhost:{port}", store, kept=kept)
    server.RequestHandlerClass = type("Handler", (_Handler,), {"hub": hub})
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":  # FOLDER PORT: until it is killed
    place = Path(sys.argv[1])
    (place / "blobs").mkdir(parents=True, exist_ok=True)
    with hub_stand_in(place / "blobs", int(sys.argv[2]), place / HUB_FILE):
        threading.Event().wait()
