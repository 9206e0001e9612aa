"""A registry that lies: what it answers is bounded, shows no credentials, steers no terminal, and is told plainly."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from export.publish import web
from export.publish.publisher import digest_of, pull, scrubbed
from export.publish.repository import Repository
from export.publish.targets import open_target
from tests.support.command import knobcast
from tests.support.published import variant
from tests.support.servers import Answer, serving
from transform.errors import KnobcastError, PublishError

SHA = "0" * 64
PLAIN = {"digest": f"sha256:{SHA}", "size": 1, "annotations": {"org.cncf.model.filepath": "a"}}
Answers = Mapping[str, Answer]


@contextmanager
def registry(answers: Answers) -> Iterator[str]:
    """host:port of a server that answers a method as it is told, whatever it is asked for."""
    with serving(lambda asked: answers[asked.partition(" ")[0]]) as host:
        yield host


@pytest.fixture(autouse=True)
def no_logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setattr(web, "WAITS", ())


def pulled(reference: str, out: Path) -> None:
    publisher = open_target(reference)
    pull(publisher, reference, out, force=False, say=lambda _: None, tick=lambda _: None)


MANIFESTS = {
    "a list of manifests": ({"manifests": [{"digest": f"sha256:{SHA}"}]}, "it has no layers"),
    "a title that leads out": ({"layers": [PLAIN | {"annotations": {"org.cncf.model.filepath": "../x"}}]}, "plain"),
    "a path twice": ({"layers": [PLAIN | {"size": 0, "digest": f"sha256:{SHA}"}, PLAIN]}, "each once"),
    "a size that no disk has": ({"layers": [PLAIN | {"size": 1 << 62}]}, "are free"),
    "a size that no number has": ({"layers": [PLAIN | {"size": 10**300}]}, "are free"),
    "a file that is a folder too": (
        {"layers": [
            PLAIN | {"size": 0, "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
            PLAIN | {"annotations": {"org.cncf.model.filepath": "a/b"}}]},
        "nothing was written",
    ),
    "one that has no end": ({"layers": [], "x": "y" * (5 << 20)}, "at most"),
}  # fmt: skip


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_that_lies_is_told_and_leaves_nothing(what: str, tmp_path: Path) -> None:
    manifest, message = MANIFESTS[what]
    with (
        registry({"GET": (200, {}, json.dumps(manifest).encode())}) as host,
        pytest.raises(KnobcastError, match=message),
    ):
        pulled(f"oci://{host}/molmoe:edge", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_registry_names_no_place_that_is_none() -> None:
    for answers in (
        {"HEAD": (401, {"WWW-Authenticate": 'Bearer realm="https://[",service="x"'}, b"")},
        {"POST": (202, {"Location": "http://[::1"}, b"")},
    ):
        with registry(answers) as host, pytest.raises(PublishError, match=r"must name URLs"):
            found = Repository(f"http://{host}", "molmoe")
            if "HEAD" in answers:
                found.has(f"sha256:{SHA}", 3)
            else:
                found.upload(f"sha256:{SHA}", 3, lambda at, end: (b"abc"[at:end],))


def test_what_a_registry_says_steers_no_terminal() -> None:
    said = json.dumps({"errors": [{"message": "no\x1b]0;gotcha\x07\x1b[2Jway\r"}]}).encode()
    with (
        registry({"HEAD": (403, {}, b""), "POST": (403, {}, said)}) as host,
        pytest.raises(PublishError, match=r"no ]0;gotcha  \[2Jway") as caught,
    ):
        Repository(f"http://{host}", "molmoe").upload(f"sha256:{SHA}", 3, lambda at, end: (b"abc"[at:end],))
    assert str(caught.value).isprintable()


def test_reading_back_ends_soon_after_the_size() -> None:
    asked: list[int] = []

    def endless() -> Iterator[bytes]:
        while len(asked) < 1000:
            asked.append(1)
            yield b"abc"

    digest_of(endless(), 9)
    assert len(asked) == 4


@pytest.mark.parametrize(
    "target",
    [
        "oci://ann:hun/ter2@host/molmoe", "s3://AKIA:hun/ter2@bucket/models", "memory://ann:hun/ter2@x",
        "oci://ann@host/molmoe", "s3://key@bucket", "oci+http://ann:hunter2/@host/molmoe:tag",
    ],
)  # fmt: skip
def test_a_login_with_a_slash_is_a_login_too(target: str) -> None:
    """As every other secret key of AWS is one."""
    with pytest.raises(PublishError, match=r"must hold no login") as caught:
        open_target(target)
    assert "ter2" not in str(caught.value)
    assert "ter2" not in scrubbed(target)


def test_a_reference_by_digest_holds_no_login() -> None:
    text = f"oci://localhost:5000/team/molmoe@sha256:{SHA}"
    assert scrubbed(text) == text
    open_target(text)


def test_a_pipe_on_a_shelf_is_told(molmo: Path, tmp_path: Path) -> None:
    """A reader would wait for who writes into it."""
    for number, name in enumerate(("SHA256SUMS", "config.json")):
        shelf = tmp_path / f"shelf-{number}"
        version = variant(molmo, shelf / "version", 1)
        (version / name).unlink()
        os.mkfifo(version / name)
        assert "it must be a regular file" in knobcast("pull", f"dir:{version}", tmp_path / "out").said
        assert not (tmp_path / "out").exists()


def test_a_slash_behind_a_version_changes_nothing(molmo: Path, tmp_path: Path) -> None:
    version = variant(molmo, tmp_path / "shelf" / f"k1-b4-{'0' * 12}", 1)
    assert "must hold the manifest whose digest begins with" in knobcast("pull", f"dir:{version}/", tmp_path / "o").said
