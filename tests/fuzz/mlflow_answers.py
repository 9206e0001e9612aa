"""What an MLflow server answers, by mlflow-skinny itself: the answers of a real one, recorded, come again, changed.

`python -m tests.fuzz.mlflow_answers URL` records them anew, from a server that was started with --serve-artifacts.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from export.publish.content import Content
from export.publish.mlflow import open_mlflow
from export.publish.publisher import publish
from tests.fuzz.answers import content_of, filled
from tests.fuzz.mutate import in_json
from tests.fuzz.replay import Said, replay
from tests.fuzz.target import Target
from tests.support.paths import ROOT

RECORDED = ROOT / "tests" / "fixtures" / "mlflow-answers.json"
WEIGHTS, NAME = b"weights" * 30, "small"
SUMS = b"e41418f7c45c8bcc6c685537cadc5a604c0387ceb3715d2a4601bed149b0d297  a.bin\n"
FILES = {"a.bin": WEIGHTS, "SHA256SUMS": SUMS, "manifest.json": b'{"source": {"name": "model"}}'}
_KEPT = ("content-type", "location")  # headers that a client may read


def mlflow_targets(folder: Path) -> tuple[Target, ...]:
    """Where the package of [mlflow] is installed."""
    if find_spec("mlflow") is None:
        return ()
    folder.mkdir()
    content, out = content_of(folder / "content", FILES), folder / "out"
    recorded = json.loads(RECORDED.read_text())

    def pull(data: bytes) -> None:
        with _replayed(data), filled(out):
            _pull("server.example", out)

    def push(data: bytes) -> None:
        with _replayed(data):
            _push("server.example", content)

    return (
        Target("mlflow pull", (json.dumps(recorded["pull"]).encode(),), in_json, pull),
        Target("mlflow push", (json.dumps(recorded["push"]).encode(),), in_json, push),
    )


def _pull(host: str, out: Path) -> None:
    open_mlflow(f"{host}/{NAME}/edge").fetch(f"mlflow://{host}/{NAME}/edge", out, lambda _: None)


def _push(host: str, content: Content) -> None:
    there = open_mlflow(f"{host}/{NAME}")
    publish(there, there.plan(content, "edge"), lambda _: None, lambda _: None)


@contextmanager
def _sending(send: Callable[..., Any]) -> Iterator[None]:
    """Every request of the client goes to `send`, and nothing is waited for; what it keeps of runs is forgotten."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("requests.adapters.HTTPAdapter.send", send)
        patch.setattr("time.sleep", lambda _: None)
        yield


@contextmanager
def _replayed(data: bytes) -> Iterator[None]:
    answer = replay(data)

    def send(_: object, request: Any, **__: object) -> Any:
        for _piece in request.body if hasattr(request.body, "__iter__") else ():
            pass
        return _made(answer(), request)

    with _sending(send):
        yield


def _made(found: Said | None, request: Any) -> Any:
    """As a connection could bring it; None brings nothing."""
    import requests
    from urllib3 import HTTPResponse

    if found is None:
        raise requests.exceptions.ConnectionError("the server is gone")
    raw = HTTPResponse(BytesIO(found.body), dict(found.headers), found.status, preload_content=False)
    return requests.adapters.HTTPAdapter().build_response(request, raw)


def record(url: str) -> None:
    """A push and a pull of a server without that model; their answers into the fixture."""
    import requests

    host, real = url.removeprefix("http://"), requests.adapters.HTTPAdapter.send
    recorded: dict[str, list[dict[str, object]]] = {"push": [], "pull": []}
    with tempfile.TemporaryDirectory() as folder:
        content = content_of(Path(folder) / "content", FILES)
        (out := Path(folder) / "out").mkdir()
        for name, act in (("push", lambda: _push(host, content)), ("pull", lambda: _pull(host, out))):

            def send(adapter: Any, request: Any, *args: Any, **options: Any) -> Any:
                found = real(adapter, request, *args, **options)
                kept = {key: value for key, value in found.headers.items() if key.lower() in _KEPT}
                try:
                    body: object = found.json()
                except ValueError:
                    body = found.text
                recorded[name].append({"status": found.status_code, "headers": kept, "body": body})  # noqa: B023
                return found

            with _sending(send):
                act()
    RECORDED.write_text(json.dumps(recorded) + "\n")


if __name__ == "__main__":
    record(sys.argv[1])
