"""Logins: read where docker keeps them, shown to the registry and its place for tokens alone, never repeated."""

import base64
import json
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import pytest

from export.publish import web
from export.publish.content import Content, read_content
from export.publish.login import login_of
from export.publish.targets import open_target
from tests.support.published import push, variant
from tests.support.registry import NEEDED, Fault, running, standing_before
from transform.errors import PublishError

Test = TypeVar("Test", bound=Callable[..., None])


def needs_registry(test: Test) -> Test:
    return NEEDED[0](NEEDED[1](test))


SECRET = "hunter2"
BCRYPT = "$2y$05$c4WoMPo3SXsafkva.HHa6umQ7HbTjL1fEOa8u4anoQv0UIDHBtggS"  # of SECRET


@pytest.fixture(scope="module")
def content(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Content:
    return read_content(variant(molmo, tmp_path_factory.mktemp("variants") / "k1", 1))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without logins."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(web, "WAITS", ())
    return tmp_path


def docker_config(home: Path, **config: object) -> None:
    (home / ".docker").mkdir(exist_ok=True)
    (home / ".docker" / "config.json").write_text(json.dumps(config))


def basic(user: str, secret: str) -> str:
    return base64.b64encode(f"{user}:{secret}".encode()).decode()


@needs_registry
def test_a_login_is_dockers_own(content: Content, home: Path) -> None:
    (home / "users").write_text(f"ann:{BCRYPT}\n")
    auth = f'auth: {{htpasswd: {{realm: r, path: "{home / "users"}"}}}}'
    with running(home / "registry", auth) as registry:
        target = f"oci://localhost:{registry.port}/molmoe"
        with pytest.raises(PublishError, match=r"demands a login, none is known. Log in: docker login localhost"):
            push(open_target(target), content)
        docker_config(home, auths={f"localhost:{registry.port}": {"auth": basic("ann", "wrong-secret")}})
        with pytest.raises(PublishError, match=r"refuses the login that is known") as caught:
            push(open_target(target), content)
        assert "wrong-secret" not in str(caught.value)
        docker_config(home, auths={f"https://localhost:{registry.port}/v2/": {"auth": basic("ann", SECRET)}})
        assert push(open_target(target), content)[0] == content.bytes
        assert SECRET not in registry.log.read_text()


class _Tokens(BaseHTTPRequestHandler):
    """A place for tokens, a stand-in: gives one to who has the secret, and keeps what it was asked."""

    asked: list[str] = []  # noqa: RUF012

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.asked.append(self.path + body)
        known = (
            self.headers.get("Authorization") == f"Basic {basic('ann', SECRET)}" or f"refresh_token={SECRET}" in body
        )
        data = json.dumps({"access_token" if body else "token": "a-token"}).encode()
        self.send_response_only(200 if known else 401)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


for _verb in ("GET", "POST"):
    setattr(_Tokens, f"do_{_verb}", _Tokens._answer)


@contextmanager
def tokens() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Tokens) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/token"
        server.shutdown()


@needs_registry
@pytest.mark.parametrize("entry", [{"auth": basic("ann", SECRET)}, {"auth": basic("ann", ""), "identitytoken": SECRET}])
def test_a_token_is_fetched_where_the_registry_says(content: Content, home: Path, entry: dict[str, str]) -> None:
    with running(home / "registry") as registry, standing_before(registry.port) as server, tokens() as realm:
        server.demands = ("Bearer a-token", f'Bearer realm="{realm}",service="s",scope="repository:molmoe:pull"')
        target = f"oci://localhost:{server.port}/molmoe"
        with pytest.raises(PublishError, match=r"demands a login"):
            push(open_target(target), content)
        docker_config(home, auths={f"localhost:{server.port}": entry})
        assert push(open_target(target), content)[0] == content.bytes
        assert {asked.headers.get("Authorization") for asked in server.asked} == {None, "Bearer a-token"}
        assert any("scope=repository%3Amolmoe%3Apull%2Cpush" in asked for asked in _Tokens.asked)
        server.demands = ("Bearer b-token", f'Bearer realm="{realm}"')
        with pytest.raises(PublishError, match=r"refuses the login"):
            push(open_target(target), content)


@needs_registry
def test_a_login_isnt_shown_where_an_upload_is_sent(content: Content, home: Path) -> None:
    """Registries hand uploads and downloads to stores of their own, by URLs that are signed."""
    with running(home / "registry") as registry, standing_before(registry.port) as server:
        server.demands = (f"Basic {basic('ann', SECRET)}", 'Basic realm="r"')
        docker_config(home, auths={f"localhost:{server.port}": {"auth": basic("ann", SECRET)}})
        target = f"oci://localhost:{server.port}/molmoe"
        version = push(open_target(target), content)[1].reference
        first = content.items[0]
        with standing_before(registry.port) as store:
            there = f"http://127.0.0.1:{store.port}/v2/molmoe/blobs/sha256:{first.sha256}"
            server.faults = [Fault("GET", first.sha256, status=307, headers={"Location": there})]
            (home / "out").mkdir()
            open_target(version).fetch(version, home / "out", lambda _: None)
            assert [(asked.method, asked.headers.get("Authorization")) for asked in store.asked] == [("GET", None)]


def test_helpers_are_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = home / "docker-credential-vault"
    helper.write_text(
        '#!/bin/sh\nread host\n[ "$host" = registry.example ] || { echo credentials not found; exit 1; }\n'
        f'echo \'{{"ServerURL": "x", "Username": "<token>", "Secret": "{SECRET}"}}\'\n'
    )
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(home), prepend=":")
    docker_config(home, credsStore="vault", auths={"other.example": {"auth": basic("ann", "b:c")}})
    found = login_of("registry.example")
    assert found is not None
    assert (found.identity, found.secret, SECRET in repr(found)) == (True, SECRET, False)
    other = login_of("other.example")
    assert other is not None
    assert (other.user, other.secret) == ("ann", "b:c")
    assert login_of("third.example") is None
    docker_config(home, credHelpers={"registry.example": "vault"})
    assert login_of("registry.example") is not None
    for name in ("absent", "../x"):
        docker_config(home, credsStore=name)
        with pytest.raises(PublishError, match=r"config.json"):
            login_of("registry.example")
    helper.write_text("#!/bin/sh\necho secret-but-no-json\n")
    docker_config(home, credsStore="vault")
    with pytest.raises(PublishError, match=r"a JSON object of a login") as caught:
        login_of("registry.example")
    assert "secret-but" not in str(caught.value)


def test_files_are_those_of_docker_and_podman(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker_config(home, auths={"https://index.docker.io/v1/": {"auth": basic("ann", "a")}})
    hub = login_of("registry-1.docker.io")
    assert hub is not None
    assert hub.user == "ann"
    (home / "podman.json").write_text(json.dumps({"auths": {"quay.io": {"auth": basic("bob", "b")}}}))
    assert login_of("quay.io") is None
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "podman.json"))
    podman = login_of("quay.io")
    assert podman is not None
    assert podman.user == "bob"
    for broken in ("{", '{"auths": {"quay.io": {"auth": "%%%"}}}'):
        (home / "podman.json").write_text(broken)
        with pytest.raises(PublishError, match=r"podman.json: .* Log in again: docker login quay.io"):
            login_of("quay.io")
