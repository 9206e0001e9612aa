"""What registries answer: an OCI registry's whole answers, logins among them, and what lies in a store."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from urllib.request import Request

from export.files.integrity import sha256_file
from export.publish import web
from export.publish.content import Content, Item
from export.publish.login import login_of
from export.publish.model_pack import MANIFEST_TYPE
from export.publish.object_store import open_store
from export.publish.oci import open_oci
from export.publish.web import Answer
from tests.fuzz.mutate import in_json
from tests.fuzz.replay import replay
from tests.fuzz.target import Target, put

_FILES = {"a.bin": b"weights" * 30, "SHA256SUMS": b"sums", "manifest.json": b"{}"}
_TAGS = {"model_type": "olmoe", "parameters": "1", "dtype": "float32"}


class EscapeError(Exception):
    """Something lies outside of the folder that was to be filled."""


def answer_targets(folder: Path) -> tuple[Target, ...]:
    """Pulls and pushes that are answered by a list of answers, in turn; a pointer of a store; a file of logins."""
    folder.mkdir()
    content = content_of(folder / "content", _FILES)
    os.environ["DOCKER_CONFIG"] = os.environ["REGISTRY_AUTH_FILE"] = str(folder / "docker")
    (folder / "docker").mkdir()
    store = _store(folder / "store")
    logins = {"auths": {"a.example": {"auth": "dTpw"}, "b.example": {"identitytoken": "t"}}, "credHelpers": {}}
    return (
        Target("oci pull", (_pulled(content),), in_json, lambda data: _pull(folder / "out", data)),
        Target("oci push", (_pushed(content),), in_json, lambda data: _push(content, data)),
        Target("store's pointer", (b'{"version": "k1-0123456789ab", "source": "m", "digest": "x"}',), in_json,
               lambda data: _from_store(store, put(store / "edge.json", data), folder / "out")),
        Target("logins", (json.dumps(logins).encode(),), in_json,
               lambda data: [_login(put(folder / "docker" / "config.json", data), host) for host in "ab"]),
    )  # fmt: skip


def content_of(directory: Path, files: Mapping[str, bytes]) -> Content:
    """A variant of these files, with its digests."""
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    items = tuple(Item(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items())
    return Content(directory, sha256_file(directory / "manifest.json"), "model", "k1-0123456789ab", items, _TAGS)


def _answer(status: int, body: object = "", **headers: str) -> dict[str, object]:
    return {"status": status, "headers": headers, "body": body}


def _pulled(content: Content) -> bytes:
    layers = [
        {"digest": f"sha256:{item.sha256}", "size": item.size, "annotations": {"org.cncf.model.filepath": item.path}}
        for item in content.items
    ]
    challenge = {"WWW-Authenticate": 'Bearer realm="https://tokens.example/t",service="s",scope="a b"'}
    answers = [
        {"status": 401, "headers": challenge, "body": ""},
        _answer(200, {"token": "abc"}),
        _answer(200, {"mediaType": MANIFEST_TYPE, "layers": layers, "annotations": {"knobcast.source": "m"}}),
        *(_answer(200, data.decode()) for data in _FILES.values()),
    ]
    return json.dumps(answers).encode()


def _pushed(content: Content) -> bytes:
    known, absent = _answer(200), _answer(404)
    begun, done = _answer(202, Location="/v2/m/blobs/uploads/1"), _answer(201)
    blobs = len(content.items)
    version = [absent, absent, begun, done, done]  # its manifest, its config, which moves, and the manifest
    return json.dumps([known, absent, *[absent] * blobs, *[begun, done] * blobs, *version]).encode()


@contextmanager
def _answering(data: bytes) -> Iterator[None]:
    """Every request gets the next of the answers, as a connection would bring it; then there is none."""
    answer = replay(data)

    def open_url(request: Request, host: str) -> Answer:
        for _ in request.data or ():  # type: ignore[union-attr]  # pieces, as web.py gives them
            pass
        found = answer()
        if found is None:
            raise web.PassingError(f"{host} can't be reached")
        message = Message()
        for name, value in found.headers:
            message[name] = value
        return Answer(found.status, message, io.BytesIO(found.body))

    before = web.open_url, web.WAITS, web.LONGEST_WAIT
    web.open_url, web.WAITS, web.LONGEST_WAIT = open_url, (0.0, 0.0, 0.0, 0.0), 0.0
    try:
        yield
    finally:
        web.open_url, web.WAITS, web.LONGEST_WAIT = before


def _pull(out: Path, data: bytes) -> None:
    with _answering(data), filled(out):
        open_oci("registry.example/m:edge").fetch("oci://registry.example/m:edge", out, lambda _: None)


def _push(content: Content, data: bytes) -> None:
    with _answering(data):
        publisher = open_oci("registry.example/m")
        publisher.push(publisher.plan(content, "edge"), lambda _: None)


def _store(store: Path) -> Path:
    version = store / "k1-0123456789ab"
    version.mkdir(parents=True)
    (version / "a.bin").write_bytes(b"weights")
    (version / "SHA256SUMS").write_text(f"{hashlib.sha256(b'weights').hexdigest()}  a.bin\n")
    (version / "manifest.json").write_text("{}")
    for place in (store, store.parent):  # what a pointer must not lead to
        (place / "manifest.json").write_text("{}")
        (place / "SHA256SUMS").write_text("")
    return store


def _from_store(store: Path, pointer: Path, out: Path) -> None:
    with filled(out):
        open_store("file", str(pointer.with_suffix(""))).fetch("file://edge", out, lambda _: None)
        if not (out / "a.bin").exists():
            raise EscapeError(f"not a version of {store}")


@contextmanager
def filled(out: Path) -> Iterator[None]:
    """An empty folder to be filled; nothing may come beside it."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    before = sorted(out.parent.iterdir())
    try:
        yield
    finally:
        if sorted(out.parent.iterdir()) != before:
            raise EscapeError("something lies beside the folder")


def _login(_: Path, host: str) -> object:
    return login_of(f"{host}.example")
