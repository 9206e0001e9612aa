"""A server between a client and a real registry: it asks for a token, and does what `http_faults.py` names."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.http_faults import Fault, strike

_PIECE = 1 << 16
_OWN = ("connection", "transfer-encoding", "content-length", "host", "authorization", "keep-alive")


@dataclass
class FaultyProxy:
    """`port` of this machine, `requests` that came through, `faults` to come; `token`: what a client must show."""

    port: int
    upstream: int
    token: str
    requests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultyProxy

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        said = f"{self.command} {self.path}"
        self.proxy.requests.append(said)
        try:
            if self.headers.get("Authorization") != f"Bearer {self.proxy.token}":
                self._refuse(401)
            elif fault := strike(self.proxy.faults, said, "status"):
                self._refuse(fault.status)
            else:
                self._pass_on(said)
        except OSError:
            self.close_connection = True

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 -- the names that http.server calls

    def _body(self, said: str) -> Iterator[bytes]:
        left = length = int(self.headers.get("Content-Length") or 0)
        cut, damage = (strike(self.proxy.faults, said, kind) for kind in ("cut", "damage"))
        while left > 0 and (piece := self.rfile.read(min(left, _PIECE))):
            left -= len(piece)
            if cut and left <= length // 2:
                self.connection.close()
                raise ConnectionResetError
            yield bytes([piece[0] ^ 1]) + piece[1:] if damage else piece

    def _refuse(self, status: int) -> None:
        for _ in self._body(""):
            pass
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _pass_on(self, said: str) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
            length = self.headers.get("Content-Length")
            body = self._body(said) if length else None
            upstream.request(self.command, self.path, body, headers | ({"Content-Length": length} if length else {}))
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _OWN:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if strike(self.proxy.faults, said, "truncate"):
            data, self.close_connection = data[: len(data) // 2], True
        self.wfile.write(data)


@contextmanager
def faulty_proxy(upstream: int, token: str) -> Iterator[FaultyProxy]:
    """A proxy for the server on a port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    proxy = FaultyProxy(server.server_address[1], upstream, token)
    server.RequestHandlerClass = type("Handler", (_Handler,), {"proxy": proxy})
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
