"""What a Hub answers, by huggingface_hub itself: a pull and a push against the stand-in are recorded, and their answers
come again, changed, without a network."""

import hashlib
import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import _http

from export.publish.content import Content
from export.publish.hub import open_hub
from export.publish.hub_errors import HTTP
from export.publish.publisher import publish
from tests.fuzz.answers import EscapeError, content_of, filled
from tests.fuzz.mutate import in_json
from tests.fuzz.replay import Said, replay, said
from tests.fuzz.target import Target
from tests.support.hub_stand_in import TOKEN, hub_stand_in

NAME = "me/small"
WEIGHTS = b"weights" * 30
SUMS = f"{hashlib.sha256(WEIGHTS).hexdigest()}  a.onnx\n".encode()
FILES = {"a.onnx": WEIGHTS, "SHA256SUMS": SUMS, "manifest.json": b'{"source": {"name": "model"}}'}  # one of them large
httpx: Any = importlib.import_module(HTTP.__module__.partition(".")[0])  # or httpx2: what this version uses
Answer = dict[str, Any]  # status, headers, body


def hub_targets(folder: Path) -> tuple[Target, ...]:
    """A pull and a push."""
    folder.mkdir()
    content = content_of(folder / "content", FILES)
    out, cache = folder / "out", folder / "cache"
    recorded: dict[str, list[Answer]] = {}
    (folder / "blobs").mkdir()
    out.mkdir()
    with hub_stand_in(folder / "blobs") as hub:
        for name, act in (("push", lambda: _push(content)), ("pull", lambda: _pull(out))):
            with _quiet(hub.url, cache), _by(_recorder(recorded.setdefault(name, []))):
                act()

    def pull(data: bytes) -> None:
        with _replayed(data, hub.url, cache), filled(out):
            _pull(out)

    def push(data: bytes) -> None:
        with _replayed(data, hub.url, cache):
            _push(content)

    return (
        Target("hub pull", (json.dumps(recorded["pull"]).encode(),), in_json, pull),
        Target("hub push", (json.dumps(recorded["push"]).encode(),), in_json, push),
    )


def _pull(out: Path) -> None:
    open_hub(NAME).fetch(f"hf:{NAME}", out, lambda _: None)


def _push(content: Content) -> None:
    hub = open_hub(NAME)
    publish(hub, hub.plan(content, "edge"), lambda _: None, lambda _: None)


@contextmanager
def _quiet(url: str, cache: Path) -> Iterator[None]:
    """The client asks `url`, keeps what it got in `cache`, and doesn't wait between tries."""
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", url)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("time.sleep", lambda _: None)
        yield


@contextmanager
def _by(answer: Callable[[Any], Any]) -> Iterator[None]:
    """All requests are answered by a function."""
    before = _http._GLOBAL_CLIENT_FACTORY
    _http.set_client_factory(lambda: httpx.Client(
        transport=httpx.MockTransport(answer), follow_redirects=True, timeout=None,
        event_hooks={"request": [_http.hf_request_event_hook]},
    ))  # fmt: skip
    try:
        yield
    finally:
        _http.set_client_factory(before)


def _recorder(answers: list[Answer]) -> Callable[[Any], Any]:
    """Ask the server, and keep what it says."""
    transport = httpx.HTTPTransport()

    def answer(request: Any) -> Any:
        found = transport.handle_request(request)
        found.read()
        try:
            body = json.loads(found.content)
        except ValueError:
            body = found.text
        headers = {name: value for name, value in found.headers.items() if name not in _OF_A_CONNECTION}
        if not isinstance(body, str):
            headers.pop("content-length", None)
        answers.append({"status": found.status_code, "headers": headers, "body": body})
        again = said(answers[-1])
        assert again is not None
        return _made(again)

    return answer


_OF_A_CONNECTION = ("date", "server", "connection")


@contextmanager
def _replayed(data: bytes, url: str, cache: Path) -> Iterator[None]:
    come = replay(data)

    def answer(_: Any) -> Any:
        found = come()
        if found is None:
            raise httpx.ConnectError("the server is gone")
        return _made(found)

    before = _below(cache.parent, cache)
    with _quiet(url, cache), _by(answer):
        yield
    if _below(cache.parent, cache) != before:
        raise EscapeError("something lies outside of the cache")


def _below(folder: Path, cache: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_relative_to(cache) and "out" not in path.parts)


def _made(found: Said) -> Any:
    """As a connection could bring it."""
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in found.headers]
    return httpx.Response(found.status, headers=pairs, content=found.body)
