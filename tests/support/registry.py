"""Debian's docker-registry, started on a free port with storage of its own; and a stand-in before it that misbehaves.

The registry's access log and its storage say what was moved. The stand-in is no registry: it hands on what it is asked,
and breaks the answers that a test names.
"""

import http.client
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

PROGRAM = "docker-registry"
ABSENT = f"no {PROGRAM}: `make registry-env` installs it where it may"


def available() -> bool:
    """Whether it is installed."""
    return shutil.which(PROGRAM) is not None


NEEDED = [pytest.mark.extra, pytest.mark.skipif(not available(), reason=ABSENT)]
_CONFIG = """\
version: 0.1
log: {{accesslog: {{disabled: false}}, level: info}}
storage:
  filesystem: {{rootdirectory: "{storage}"}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
{auth}
"""


@dataclass(frozen=True)
class Registry:
    """One that runs. `storage`: its blobs; `log`: a line per request."""

    port: int
    storage: Path
    log: Path
    process: "subprocess.Popen[bytes]"

    @property
    def stored(self) -> int:
        """Bytes of all blobs."""
        return sum(path.stat().st_size for path in self.storage.rglob("blobs/**/data"))

    def requests(self, method: str) -> list[str]:
        """Paths that were asked for with a method."""
        return re.findall(rf'"{method} (\S+) HTTP', self.log.read_text())


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(folder: Path, auth: str = "") -> Iterator[Registry]:
    """A registry with its files in `folder`; `auth`: lines of its configuration."""
    assert shutil.which(PROGRAM), ABSENT
    folder.mkdir(parents=True, exist_ok=True)
    port, storage, config = free_port(), folder / "storage", folder / "config.yml"
    config.write_text(_CONFIG.format(storage=storage, port=port, auth=auth))
    env = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}  # it reads these too
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([PROGRAM, "serve", config], stdout=log, stderr=log, env=env)
        try:
            wait_for(port, process)
            yield Registry(port, storage, folder / "log", process)
        finally:
            process.terminate()
            process.wait()


def wait_for(port: int, process: "subprocess.Popen[bytes]", seconds: int = 30) -> None:
    """Until somebody listens at a port."""
    for _ in range(20 * seconds):
        assert process.poll() is None, "the server ended at once"
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens at {port}")


@dataclass(frozen=True)
class Asked:
    """A request as it came to the stand-in."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Fault:
    """What happens to the next `times` requests with this method whose path fits.

    `cut`: bytes of the request's body that are read before the connection is closed; `status` and `headers`: the answer
    instead of the registry's; `change`: what is made of an answer's body; `length`: bytes of it that are sent.
    """

    method: str
    path: str
    times: int = 1
    cut: int | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    change: Callable[[bytes], bytes] | None = None
    length: int | None = None


class StandIn(ThreadingHTTPServer):
    """Hands requests to the server at `port`, but for those that `faults` name. `asked`: all of them, in order;
    `demands`: (the Authorization that it wants, the challenge to who has another)."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = port
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.demands: tuple[str, str] | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def fault_for(self, method: str, path: str) -> Fault | None:
        """The first that fits, used up by one."""
        for fault in self.faults:
            if fault.times and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None


@contextmanager
def standing_before(port: int) -> Iterator[StandIn]:
    """A stand-in that answers until the block ends."""
    with StandIn(port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def _answer(self) -> None:
        self.close_connection = True
        self.server.asked.append(Asked(self.command, self.path, dict(self.headers)))
        fault = self.server.fault_for(self.command, self.path)
        size = int(self.headers.get("Content-Length", 0))
        if fault and fault.cut is not None:
            self.rfile.read(min(fault.cut, size))
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self.rfile.read(size)
        if self.server.demands and self.headers.get("Authorization") != self.server.demands[0]:
            self._send(401, {"WWW-Authenticate": self.server.demands[1]}, b"", 0)
            return
        if fault and fault.status is not None:
            self._send(fault.status, fault.headers, b"", 0)
            return
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        kept = {name: value for name, value in self.headers.items() if name.lower() != "authorization"}
        behind.request(self.command, self.path, body, kept)
        answer = behind.getresponse()
        data = answer.read()
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")}
        if fault and fault.change:
            data = fault.change(data)
            headers["Content-Length"] = str(len(data))
        headers |= fault.headers if fault else {}
        self._send(answer.status, headers, data, fault.length if fault else None)
        behind.close()

    def _send(self, status: int, headers: dict[str, str], data: bytes, length: int | None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name in headers):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:length])

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


for _verb in ("GET", "HEAD", "POST", "PUT", "PATCH"):
    setattr(_Handler, f"do_{_verb}", _Handler._answer)
