"""A server that is no registry, and a client that isn't installed: said by the plan, before files move or are read."""

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from export.publish import patience, web
from export.publish.targets import open_target
from tests.support.command import knobcast
from tests.support.published import variant
from tests.support.servers import serving
from transform.errors import PublishError


@pytest.fixture(scope="module")
def made(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return variant(molmo, tmp_path_factory.mktemp("variants") / "k1", 1)


PAGES = {
    "no such page": (404, "text/html", b"<h1>Not Found</h1>"),
    "a page for everything": (200, "text/html", b"<html>hello</html>"),
    "an object": (200, "application/json", b"{}"),
    "a list": (200, "application/json", b"[]"),
    "null": (200, "application/json", b"null"),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_the_plan_says_that_a_server_is_no_registry(
    page: tuple[int, str, bytes], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "WAITS", ())
    monkeypatch.setattr(patience, "PATIENCE", ())
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    status, kind, body = page
    with serving(lambda _: (status, {"Content-Type": kind}, body)) as host:
        monkeypatch.setenv("HF_ENDPOINT", f"http://{host}")
        monkeypatch.setenv("HF_TOKEN", "hf_somebodys")
        for target, away in ((f"oci://{host}/molmoe", ":edge"), ("hf:me/molmoe", "@edge")):
            planned = knobcast("push", made, target, "--dry-run")
            pulled = knobcast("pull", target + away, tmp_path / "out")
            for done in (planned, pulled):
                assert (done.code, "Traceback" in done.err) == (1, False)
                assert any(
                    words in done.said
                    for words in (
                        "must be an OCI registry",
                        "must answer with JSON",
                        "must answer with one JSON object",
                        "it has no layers",
                        "The registry is damaged",
                        "must answer as the Hub does",
                        "so it may be no Hub",
                    )
                ), done.said
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_lists_nothing_but_is_one_is_taken(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries say what they are at /v2/, with any body."""

    def answer(asked: str) -> tuple[int, dict[str, str], bytes]:
        return (200, {"Content-Type": "application/json"}, b"{}") if asked == "GET /v2/" else (404, {}, b"")

    with serving(answer) as host:
        done = knobcast("push", made, f"oci://{host}/molmoe", "--dry-run", "--json")
    assert (done.code, json.loads(done.out)["bytes_to_move"] > 0) == (0, True)


@pytest.mark.parametrize(
    ("package", "target"), [("huggingface_hub", "hf:me/molmoe"), ("mlflow", "mlflow://localhost:9/molmoe")]
)
def test_a_client_that_isnt_installed_is_named_before_files_are_read(
    package: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, parent: str | None = None) -> ModuleSpec | None:
        return None if name == package else real(name, parent)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(PublishError, match=f"the package {package} of the extra"):
        open_target(target)
    assert f"the package {package}" in knobcast("push", tmp_path / "absent", target).said


def test_an_alias_that_none_can_have_is_named_before_files_are_read(tmp_path: Path) -> None:
    assert "an alias must be letters" in knobcast("push", tmp_path / "absent", "dir:shelf", "--alias", "a/b").said
