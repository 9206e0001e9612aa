"""What campaigns publish to: Debian's docker-registry, a stand-in Hub, an MLflow server; each keeps its files in a
folder, and what they name there is read from these files."""

import hashlib
import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support import registry
from tests.support.hub_stand_in import HUB_FILE, TOKEN
from tests.support.hub_store import Entry, Store
from tests.support.paths import ROOT

MLFLOW = ROOT / ".venv-mlflow" / "bin" / "mlflow"
STORE = "mlflow.db"
CACHE = "cache"  # the Hub client's, in the folder of a run


@dataclass(frozen=True)
class Served:
    """A server of a kind, its port, and how it dies."""

    kind: str
    port: int
    end: Callable[[], None]


def lacking(kind: str) -> str | None:
    """Why servers of a kind can't run here."""
    if kind == "oci" and not registry.available():
        return registry.ABSENT
    if kind == "mlflow" and not (MLFLOW.exists() and importlib.util.find_spec("mlflow")):
        return "no MLflow: `make mlflow-env` makes a server, the extra [mlflow] has the client"
    return None


@contextmanager
def serving(kind: str, folder: Path) -> Iterator[Served | None]:
    """One that runs until the block ends; None where nothing is asked."""
    if not kind:
        yield None
    elif kind == "oci":
        with registry.running(folder) as found:
            yield Served(kind, found.port, found.process.kill)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        process = (_hub if kind == "hf" else _mlflow)(folder)
        try:
            yield Served(kind, process.port, process.end)
        finally:
            if kind == "hf":
                process.end()


def prepare(served: Served, folder: Path) -> None:
    """In a child, before its command: where the clients look, and no patience."""
    real = time.sleep
    setattr(time, "sleep", lambda seconds: real(min(float(seconds), 0.02)))  # noqa: B010 -- its type is the library's
    if served.kind == "hf":
        os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{served.port}", "HF_TOKEN": TOKEN}
        from huggingface_hub import constants

        known = {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(folder / CACHE)}
        for name, value in known.items():
            setattr(constants, name, value)


class _Process:
    def __init__(self, command: list[str | Path], port: int, **env: str) -> None:
        self.port = port
        none = subprocess.DEVNULL  # a log would keep a file system busy
        self._popen = subprocess.Popen(
            command, stdout=none, stderr=none, env=_clean() | env, cwd=ROOT, start_new_session=True
        )
        try:
            registry.wait_for(port, self._popen, 300)  # whole campaigns run behind all else
        except BaseException:
            self.end()
            raise

    @property
    def runs(self) -> bool:
        return self._popen.poll() is None

    def end(self) -> None:
        """With its workers, whatever they do."""
        if self.runs:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def _hub(folder: Path) -> _Process:
    port = registry.free_port()
    return _Process([sys.executable, "-m", "tests.support.hub_stand_in", folder, str(port)], port)


_running: dict[Path, _Process] = {}


def _mlflow(folder: Path) -> _Process:
    """It takes seconds to start, so it stays, and finds the files that a world puts there: it opens them each time."""
    found = _running.get(folder)
    if found is None or not found.runs:
        port = registry.free_port()
        command: list[str | Path] = [
            MLFLOW, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{folder / STORE}", "--artifacts-destination", folder / "artifacts",
        ]  # fmt: skip
        found = _running[folder] = _Process(
            command, port, MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
            MLFLOW_SQLALCHEMYSTORE_POOLCLASS="NullPool",
        )  # fmt: skip
    return found


def end_all() -> None:
    """Servers that stayed."""
    for process in _running.values():
        process.end()


def named(storage: Path) -> dict[str, str]:
    """{version, tag, branch or alias: digest of what it names} in a server's folder."""
    if (storage / HUB_FILE).exists():
        trees = {f"{name}@{branch}": tree for name, branch, tree in _branches(storage)}
        return {name: _digest({path: entry.oid for path, entry in tree.items()}) for name, tree in trees.items()}
    if (storage / STORE).exists():
        return {name: _digest(_files(place)) for name, place in _versions(storage).items()}
    return _tags(storage)


def damaged(storage: Path) -> str:
    """What of that isn't whole."""
    if (storage / HUB_FILE).exists():
        found = ((f"{name}@{branch}", _listed(storage, tree)) for name, branch, tree in _branches(storage))
    elif (storage / STORE).exists():
        found = ((name, _files(place)) for name, place in _versions(storage).items())
    else:
        return _damaged_tag(storage)
    return next((f"{name} isn't whole" for name, files in found if files and not _is_whole(files)), "")


def torn_tag(storage: Path) -> bool:
    """Whether a docker-registry's disk was full as it wrote a tag: it does so in place, and answers 500 to an empty one
    until that is deleted."""
    links = storage.glob("storage/docker/registry/v2/repositories/*/_manifests/tags/*/current/link")
    return any(not link.read_text() for link in links)


def is_storage(folder: Path) -> bool:
    """Whether a server has its files there."""
    return any((folder / name).exists() for name in ("config.yml", HUB_FILE, STORE))


def _digest(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def _is_whole(files: dict[str, str]) -> bool:
    """Path -> text of SHA256SUMS, and digests of all others: its names with their digests, and no others."""
    sums = files.get("SHA256SUMS", "")
    listed = dict(line.split("  ")[::-1] for line in sums.splitlines())
    own = {name: value for name, value in files.items() if name not in ("SHA256SUMS", "manifest.json", "model.sig")}
    return bool(listed) and own == listed and "manifest.json" in files


def _branches(storage: Path) -> Iterator[tuple[str, str, dict[str, Entry]]]:
    for name, repository in Store.load(storage / HUB_FILE, storage / "blobs").repositories.items():
        for branch, commit in repository.branches.items():
            yield name, branch, {p: e for p, e in repository.commits[commit].items() if p != ".gitattributes"}


def _listed(storage: Path, tree: dict[str, Entry]) -> dict[str, str]:
    found = {}
    for path, entry in tree.items():
        data = (storage / "blobs" / entry.sha256).read_bytes() if entry.sha256 else entry.content
        found[path] = data.decode() if path == "SHA256SUMS" else hashlib.sha256(data).hexdigest()
    return found


def _versions(storage: Path) -> dict[str, Path]:
    """What MLflow's database names -> the folder of its files."""
    with closing(sqlite3.connect(storage / STORE)) as base:
        made = base.execute("SELECT name, version, source FROM model_versions").fetchall()
        found = {f"{name}/{number}": _artifacts(storage, source) for name, number, source in made}
        aliases = base.execute("SELECT name, alias, version FROM registered_model_aliases").fetchall()
    return found | {f"{name}/{alias}": found[f"{name}/{number}"] for name, alias, number in aliases}


def _artifacts(storage: Path, source: str) -> Path:
    return storage / "artifacts" / source.removeprefix("mlflow-artifacts:/")


def _files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        if path.name == "SHA256SUMS"
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _tags(storage: Path) -> dict[str, str]:
    """{"repository:tag": digest of its manifest} in the files of a docker-registry."""
    found = {}
    for link in storage.glob("storage/docker/registry/v2/repositories/*/_manifests/tags/*/current/link"):
        found[f"{link.parents[4].name}:{link.parents[1].name}"] = link.read_text()
    return {tag: digest for tag, digest in found.items() if digest}  # an empty one is no tag yet


def _damaged_tag(storage: Path) -> str:
    for tag, digest in _tags(storage).items():
        manifest = json.loads(_blob(storage, digest) or b"{}")
        layers = [*manifest.get("layers", ()), manifest.get("config", {"digest": digest})]
        for layer in layers:
            data = _blob(storage, layer["digest"])
            if data is None or f"sha256:{hashlib.sha256(data).hexdigest()}" != layer["digest"]:
                return f"{tag} lacks {layer['digest'][:19]}"
    return ""


def _blob(storage: Path, digest: str) -> bytes | None:
    name = digest.removeprefix("sha256:")
    path = storage / "storage/docker/registry/v2/blobs/sha256" / name[:2] / name / "data"
    return path.read_bytes() if path.is_file() else None


@cache
def warm() -> None:
    """Import the clients, once: children are forked."""
    import huggingface_hub.hf_api  # noqa: F401

    if lacking("mlflow") is None:
        import export.publish.mlflow_client  # noqa: F401
