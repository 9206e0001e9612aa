"""A registry that fails, refuses, cuts and lies, played by a stand-in before a real one: the rerun succeeds, and
nothing half-published is to be had by the alias."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from export.publish import repository, web
from export.publish.content import Content, read_content
from export.publish.targets import open_target
from tests.support.command import knobcast
from tests.support.published import names, push, variant
from tests.support.registry import NEEDED, Fault, Registry, StandIn, running, standing_before
from transform.errors import PublishError

pytestmark = NEEDED


@pytest.fixture(scope="module")
def contents(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Content, Content]:
    made = tmp_path_factory.mktemp("variants")
    return read_content(variant(molmo, made / "k1", 1)), read_content(variant(molmo, made / "b3", 2, [0, 2, 3]))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(web, "WAITS", (0.0, 0.0))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "")
    monkeypatch.setattr(repository, "CHUNK", 600_000)
    with running(tmp_path / "registry") as registry, standing_before(registry.port) as found:
        yield found


def target(server: StandIn | Registry) -> str:
    return f"oci://localhost:{server.port}/molmoe"


def published(server: StandIn, reference: str, tmp_path: Path) -> dict[str, bytes] | None:
    """What a user who knows nothing of faults gets for a reference; None: nothing."""
    out = tmp_path / f"got-{len(list(tmp_path.iterdir()))}"
    done = knobcast("pull", f"oci://localhost:{server.behind}/molmoe:{reference}", out)
    return names(out) if done.code == 0 else None


BLOB = r"/blobs/uploads/"
PASSING = {
    "the registry dies within a part of a large file": Fault("PATCH", BLOB, cut=100_000),
    "it dies within a small file": Fault("PUT", BLOB, cut=1),
    "it answers 500 to an upload": Fault("POST", BLOB, status=500),
    "it answers 503 to a part": Fault("PATCH", BLOB, times=2, status=503),
    "it asks to wait": Fault("PUT", "/manifests/", status=429, headers={"Retry-After": "0"}),
    "it dies before the manifest": Fault("PUT", "/manifests/", cut=0),
    "it is cut while it is read": Fault("GET", "/blobs/sha256", length=500),
    "it answers 502 to a question": Fault("HEAD", "/blobs/sha256", status=502),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_repeated(
    fault: Fault, stand_in: StandIn, contents: tuple[Content, Content], tmp_path: Path
) -> None:
    stand_in.faults = [fault]
    moved, _ = push(open_target(target(stand_in)), contents[0], "edge")
    assert fault.times == 0, "it was met"
    assert moved == contents[0].bytes, "the progress doesn't count twice"
    assert published(stand_in, "edge", tmp_path) == names(contents[0].directory)


LASTING = {
    "an upload dies again and again": (Fault("PATCH", BLOB, times=99, cut=100_000), "tries failed"),
    "500 for ever": (Fault("POST", BLOB, times=99, status=500), "answers 500"),
    "a manifest that isn't taken": (Fault("PUT", "/manifests/", times=99, status=500), "answers 500"),
    "429 for an hour": (Fault("POST", BLOB, status=429, headers={"Retry-After": "3600"}), "asks to wait 3600 s"),
    "401 in the midst": (Fault("PUT", BLOB, times=99, status=401), "demands a login, none is known. Log in: docker"),
    "403": (Fault("POST", BLOB, times=99, status=403), "denies"),
    "a damaged answer when it is read back": (
        Fault("GET", "/blobs/sha256", change=lambda data: data[::-1]), "the registry holds"),
    "an answer that is cut short each time": (Fault("GET", "/blobs/sha256", times=99, length=0), "it stops after"),
    # asked for twice: whether the version is there already, and what became of it
    "another manifest": (Fault("GET", r"/manifests/k", times=2, change=lambda data: data + b" "), "the manifest"),
    "a digest that isn't the manifest's": (
        Fault("GET", r"/manifests/k", times=2, headers={"Docker-Content-Digest": f"sha256:{'0' * 64}"}),
        "the manifest"),
    "another size": (Fault("HEAD", "/blobs/sha256", times=99, status=200, headers={"Content-Length": "3"}), "damaged"),
    "nowhere to go": (Fault("POST", BLOB, status=202), "must say where an upload goes"),
    "a place without TLS": (
        Fault("POST", BLOB, status=202, headers={"Location": "http://elsewhere.example/x"}), "without TLS"),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "message"), LASTING.values(), ids=LASTING)
def test_what_lasts_is_told_and_the_rerun_succeeds(
    fault: Fault, message: str, stand_in: StandIn, contents: tuple[Content, Content], tmp_path: Path
) -> None:
    old, new = contents
    push(open_target(f"oci://localhost:{stand_in.behind}/molmoe"), old, "edge")
    if fault.path == r"/manifests/k":
        fault.path = f"/manifests/{new.version}"
    stand_in.faults = [fault]
    stand_in.asked.clear()
    with pytest.raises(PublishError, match=message):
        push(open_target(target(stand_in)), new, "edge")
    assert published(stand_in, "edge", tmp_path) == names(old.directory), "the alias is where it was"
    assert published(stand_in, new.version, tmp_path) in (None, names(new.directory))
    stand_in.faults = []
    push(open_target(target(stand_in)), new, "edge")
    assert published(stand_in, "edge", tmp_path) == names(new.directory)


def test_a_registry_without_ranges_and_mounts_serves_too(
    stand_in: StandIn, contents: tuple[Content, Content], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PIECE", 100_000)
    version = push(open_target(target(stand_in)), contents[0])[1].reference
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = next(item for item in contents[0].items)
    stand_in.faults = [
        Fault("GET", first.sha256, length=250_000),
        Fault("GET", first.sha256, status=200, headers={"Content-Length": str(first.size)}),
    ]
    with pytest.raises(PublishError, match=r"it stops after 250,000"):
        open_target(version).fetch(version, tmp_path / "a", lambda _: None)
    stand_in.faults = [Fault("GET", first.sha256, length=250_000)]
    stand_in.asked.clear()
    open_target(version).fetch(version, tmp_path / "b", lambda _: None)
    asked = [a.headers.get("Range") for a in stand_in.asked if first.sha256 in a.path]
    assert asked == [None, "bytes=250000-"]
    assert names(tmp_path / "b") == names(contents[0].directory)


def test_a_pull_that_fails_leaves_nothing(stand_in: StandIn, contents: tuple[Content, Content], tmp_path: Path) -> None:
    version = push(open_target(target(stand_in)), contents[0])[1].reference
    stand_in.faults = [Fault("GET", "/blobs/sha256", change=lambda data: data[::-1])]
    before = sorted(tmp_path.iterdir())
    done = knobcast("pull", version, tmp_path / "out")
    assert "must have the SHA-256" in done.said
    assert sorted(tmp_path.iterdir()) == before
