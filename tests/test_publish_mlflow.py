"""`mlflow:` against a real MLflow server, by mlflow-skinny: what is registered, read back, and what goes wrong."""

import importlib.util
import json
import logging
import os
import shutil
import socket
import subprocess
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from export.files.check import check_files
from export.publish.content import read_content
from export.publish.mlflow import MLflow, open_mlflow
from export.publish.publisher import Transfer, pull
from tests.support.command import knobcast
from tests.support.faulty_proxy import FaultyProxy, faulty_proxy
from tests.support.http_faults import Fault
from tests.support.paths import ROOT
from tests.support.peak import peak_of
from tests.support.published import names, push
from tests.support.published import variant as write
from tests.support.variants import record_sums
from transform.errors import PublishError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVER = ROOT / ".venv-mlflow" / "bin" / "mlflow"
TOKEN = "aTokenThatNobodyMaySee"
_NUMBERS = count()
needs_server = [
    pytest.mark.extra,
    pytest.mark.skipif(not SERVER.exists(), reason="no .venv-mlflow: `make mlflow-env` creates it"),
    pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="no mlflow: `pip install -e .[mlflow]`"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an MLflow server that serves its artifacts itself."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command: list[str | Path] = [
        SERVER, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/store.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(600):
            assert running.poll() is None, (folder / "log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield port
    finally:
        os.killpg(running.pid, 15)
        running.wait(30)


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    with faulty_proxy(server, TOKEN) as running:
        yield running


@pytest.fixture
def there(proxy: FaultyProxy) -> MLflow:
    """A registered model of the test's own."""
    return open_mlflow(f"127.0.0.1:{proxy.port}/model {next(_NUMBERS)}")


@pytest.fixture
def client(server: int) -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(f"http://127.0.0.1:{server}", f"http://127.0.0.1:{server}")


@pytest.fixture(scope="module")
def variant(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(molmo, tmp_path_factory.mktemp("variants") / "k2", 2)


@pytest.fixture(scope="module")
def other(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(molmo, tmp_path_factory.mktemp("variants") / "k3", 3)


def plan(there: MLflow, directory: Path, alias: str | None = None) -> Transfer:
    return there.plan(read_content(directory), alias)


def fetch(reference: str, out: Path) -> Path:
    publisher = open_mlflow(reference.removeprefix("mlflow://"))
    pull(publisher, reference, out, force=False, say=lambda _: None, tick=lambda _: None)
    return out


class TestServer:
    pytestmark = needs_server

    def test_a_version_goes_and_comes_back(
        self, there: MLflow, client: "MlflowClient", variant: Path, other: Path, tmp_path: Path
    ) -> None:
        content = read_content(variant)
        moved, receipt = push(there, content, "edge-prod")
        assert (moved, receipt.reference) == (content.bytes, f"{there.target}/{content.version}")
        found = client.get_model_version_by_alias(there.name, "edge-prod")
        said = {name.removeprefix("knobcast."): value for name, value in found.tags.items()}
        assert said == {**content.tags, "digest": content.digest, "version": content.version, "source": content.name}
        assert client.get_run(found.run_id).data.metrics["parameters"] == float(content.tags["parameters"])
        assert client.get_run(found.run_id).info.status == "FINISHED"
        _, second = push(there, read_content(other), "edge-prod")
        assert client.get_model_version_by_alias(there.name, "edge-prod").version == "2"
        for number, (reference, directory) in enumerate(
            ((receipt.reference, variant), (f"{there.target}/1", variant), (second.reference, other),
             (f"{there.target}/edge-prod", other), (there.target, other))
        ):  # fmt: skip
            assert names(fetch(reference, tmp_path / f"out-{number}")) == names(directory)

    @pytest.mark.parametrize("place", ["file://{}", "{}"])
    def test_a_server_names_no_folder_here(
        self, there: MLflow, client: "MlflowClient", variant: Path, tmp_path: Path, place: str
    ) -> None:
        """mlflow would write there, and confirm what nobody else can read."""
        folder = tmp_path / "mine"
        client.create_experiment(there.name, artifact_location=place.format(folder))
        with pytest.raises(PublishError, match=r"the server must keep the files"):
            push(there, read_content(variant))
        assert not folder.exists()

    def test_a_signature_travels_and_may_come_later(self, there: MLflow, variant: Path, tmp_path: Path) -> None:
        signed = shutil.copytree(variant, tmp_path / "signed")
        push(there, read_content(signed))
        for text in ("one", "two", "three, longer"):
            (signed / "model.sig").write_text(text)
            moved, receipt = push(there, read_content(signed))
            assert moved == len(text)
            assert names(fetch(receipt.reference, tmp_path / text)) == names(signed)
        assert push(there, read_content(signed))[0] == 0
        assert push(there, read_content(variant))[0] == 0, "it stays where somebody else has none"

    def test_a_digest_that_has_a_version_isnt_sent_again(
        self, there: MLflow, proxy: FaultyProxy, client: "MlflowClient", variant: Path
    ) -> None:
        assert plan(there, variant).present == frozenset()
        push(there, read_content(variant))
        proxy.requests.clear()
        assert plan(there, variant).moving == ()
        moved, _ = push(there, read_content(variant), "again")
        assert (moved, [said for said in proxy.requests if said.startswith("PUT")]) == (0, [])
        assert len(client.search_model_versions(f"name = '{there.name}'")) == 1

    def test_the_command_says_what_it_does_and_mlflow_nothing(
        self, proxy: FaultyProxy, variant: Path, tmp_path: Path
    ) -> None:
        target = f"mlflow://127.0.0.1:{proxy.port}/by-command"
        done = knobcast("push", variant, target, "--json")
        assert (done.code, json.loads(done.out)["confirmed"]) == (0, True), done.err
        assert "http://" not in done.err
        back = knobcast("pull", target, tmp_path / "out", "--json")
        assert (back.code, json.loads(back.out)["verification"]) == (0, "passed"), back.err

    def test_models_and_aliases_of_others_stay(
        self, there: MLflow, client: "MlflowClient", variant: Path, tmp_path: Path
    ) -> None:
        push(there, read_content(variant), "edge")
        with pytest.raises(PublishError, match="this is one of somebody/else"):
            there.plan(replace(read_content(variant), name="somebody/else"), "edge")
        client.create_registered_model("not-ours")
        run = client.create_run("0").info
        client.create_model_version("not-ours", f"{run.artifact_uri}/model", run.run_id)
        not_ours = open_mlflow(f"{there.host}/not-ours")
        with pytest.raises(PublishError, match="versions that push didn't make"):
            plan(not_ours, variant)
        with pytest.raises(PublishError, match="version 1 is no variant that push made"):
            fetch(not_ours.target, tmp_path / "out")

    def test_what_isnt_there_is_said(self, there: MLflow, variant: Path, tmp_path: Path) -> None:
        with pytest.raises(PublishError, match="Check the name"):
            fetch(there.target, tmp_path / "out")
        content = read_content(variant)
        push(there, content)
        for version in ("7", "edge", "k2-b4-0123456789ab"):
            with pytest.raises(PublishError, match=f"Give one of {content.version}"):
                fetch(f"{there.target}/{version}", tmp_path / "out")

    @pytest.mark.parametrize(
        "fault",
        [Fault("PUT .*mlflow-artifacts", "status", 500, spare=3), Fault("PUT .*mlflow-artifacts", "status", 429),
         Fault("PUT .*mlflow-artifacts", "cut", spare=2), Fault("PUT .*mlflow-artifacts", "status", 403, spare=1),
         Fault("PUT .*model.safetensors", "damage"), Fault("GET .*mlflow-artifacts", "truncate", spare=4),
         Fault("POST .*/model-versions/create", "status", 500), Fault("POST .*/runs/create", "status", 401)],
        ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.at.rpartition('/')[2]}",
    )  # fmt: skip
    def test_no_version_appears_and_a_rerun_sends_what_is_missing(
        self, there: MLflow, proxy: FaultyProxy, client: "MlflowClient", variant: Path, other: Path,
        monkeypatch: pytest.MonkeyPatch, fault: Fault,
    ) -> None:  # fmt: skip
        monkeypatch.setattr("export.publish.patience.PATIENCE", (0.0,))
        push(there, read_content(other), "edge")
        proxy.faults.append(Fault(fault.at, fault.kind, fault.status, fault.times, fault.spare))
        content = read_content(variant)
        with pytest.raises(PublishError) as caught:
            push(there, content, "edge")
        assert TOKEN not in "".join(traceback.format_exception(caught.value))
        assert client.get_model_version_by_alias(there.name, "edge").version == "1"
        assert len(client.search_model_versions(f"name = '{there.name}'")) == 1
        proxy.faults.clear()
        present = plan(there, variant).present
        moved, _ = push(there, content, "edge")
        assert moved == sum(item.size for item in content.items if item.path not in present)
        assert fault.spare == 0 or fault.kind == "truncate" or present
        assert client.get_model_version_by_alias(there.name, "edge").version == "2"

    @pytest.mark.parametrize("kind", ["status", "cut", "truncate"])
    def test_what_passes_is_waited_for(self, there: MLflow, proxy: FaultyProxy, variant: Path, kind: str) -> None:
        content = read_content(variant)
        at = "GET .*mlflow-artifacts/.*/variant/" if kind == "truncate" else "PUT .*mlflow-artifacts"
        proxy.faults.append(Fault(at, kind, times=1))
        push(there, content)
        assert plan(there, variant).moving == ()

    def test_a_pull_that_is_cut_leaves_nothing(
        self, there: MLflow, proxy: FaultyProxy, variant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("export.publish.patience.PATIENCE", (0.0,))
        push(there, read_content(variant))
        proxy.faults.append(Fault("GET .*model.safetensors", "truncate", times=2))
        with pytest.raises(PublishError):
            fetch(there.target, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
        check_files(fetch(there.target, tmp_path / "out"))

    def test_a_version_whose_files_changed_is_named(
        self, there: MLflow, client: "MlflowClient", variant: Path, tmp_path: Path
    ) -> None:
        content = read_content(variant)
        _, receipt = push(there, content)
        (tmp_path / "config.json").write_text("{}")
        client.log_artifact(receipt.digest, str(tmp_path / "config.json"), "variant")
        with pytest.raises(PublishError, match=r"config\.json must have the SHA-256.*version 1: delete that first"):
            push(there, content)
        with pytest.raises(PublishError, match=r"config\.json must have the SHA-256"):
            fetch(receipt.reference, tmp_path / "out")

    def test_a_file_of_a_gibibyte_takes_little_memory(self, server: int, variant: Path, tmp_path: Path) -> None:
        large = shutil.copytree(variant, tmp_path / "large")
        with (large / "large.bin").open("wb") as file:
            file.truncate(1 << 30)
        record_sums(large)
        # past the proxy, which holds what it passes on
        target = f"mlflow://127.0.0.1:{server}/large"
        for arguments in (("push", large, target), ("pull", target, tmp_path / "out")):
            assert peak_of(*arguments, env=os.environ) < 200

    @pytest.mark.parametrize("token", [None, "aWrongTokenOfSomebody"])
    def test_refused_credentials_are_said_and_never_shown(
        self, there: MLflow, variant: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
    ) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
        if token:
            monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
        with pytest.raises(PublishError, match="MLFLOW_TRACKING_USERNAME") as caught:
            plan(there, variant)
        assert not token or token not in "".join(traceback.format_exception(caught.value))

    def test_the_token_is_in_no_log_output_or_file(
        self, there: MLflow, server: int, client: "MlflowClient", variant: Path, tmp_path: Path,
        capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        caplog.set_level(logging.DEBUG)
        _, receipt = push(there, read_content(variant), "edge")
        out = fetch(receipt.reference, tmp_path / "out")
        assert TOKEN not in "".join(capfd.readouterr()) + caplog.text
        assert not [path for path in out.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
        assert TOKEN not in str(client.get_model_version(there.name, "1")) + str(client.get_run(receipt.digest))


def test_a_server_that_isnt_there_is_said(variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("mlflow") is None:
        done = knobcast("push", variant, "mlflow://127.0.0.1:9/molmo")
        assert "the extra [mlflow]" in done.said
        assert "pip install -e '.[mlflow]'" in done.said
        return
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(PublishError, match="can't be reached"):
        plan(open_mlflow("127.0.0.1:9/molmo"), variant)


@pytest.mark.parametrize(
    ("rest", "why"),
    [("", "must name a server"), ("localhost:5000", "must name a server"), ("localhost/a/b/c", "must name a server"),
     ("me:secret@localhost/a", "takes no credentials"), ("localhost/a'b", "must name a server")],
)  # fmt: skip
def test_a_target_names_a_server_and_a_model(rest: str, why: str) -> None:
    with pytest.raises(PublishError, match=why) as caught:
        open_mlflow(rest)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("alias", ["latest", "v1", "V12", "a.b"])
def test_mlflows_own_aliases_are_refused(variant: Path, alias: str) -> None:
    with pytest.raises(PublishError, match="MLflow's aliases"):
        plan(MLflow("mlflow", "localhost", "molmo"), variant, alias)


def test_a_push_makes_the_version_itself(variant: Path) -> None:
    with pytest.raises(PublishError, match="Leave that out"):
        plan(MLflow("mlflow", "localhost", "molmo", "3"), variant)


@pytest.mark.extra
@pytest.mark.parametrize("error", [KeyError("run"), TypeError("no list"), ValueError("no number"), SystemError("pb")])
def test_an_answer_that_the_client_stumbles_over_is_told(error: Exception) -> None:
    pytest.importorskip("mlflow", reason="no mlflow: `pip install -e .[mlflow]`")
    from export.publish.mlflow_client import calm

    with pytest.raises(PublishError, match="must answer as MLflow does"), calm("http://server.example", "small"):
        raise error
    with pytest.raises(PublishError, match="ours"), calm("http://server.example", "small"):
        raise PublishError("ours")
