"""HTTP as registries need it: bodies in pieces, a few repetitions of what passes, logins when asked for one.

Only the standard library. A login or token goes to the registry's own host and to the place that it names for tokens,
never to where it redirects.
"""

import http.client
import json
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from email.message import Message
from types import MappingProxyType
from typing import IO, TypeVar

from export.publish.login import Login, login_of
from export.publish.publisher import PIECE, scrubbed
from transform.errors import PublishError
from transform.strict_json import Record, parse

Done = TypeVar("Done")
WAITS: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)  # seconds before a repetition
LONGEST_WAIT = 60.0  # seconds that a registry may ask for with Retry-After
_TIMEOUT = 60.0  # seconds without a byte
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LARGEST = 4 << 20  # bytes of a JSON answer: the most a registry takes for a manifest
_NONE: Mapping[str, str] = MappingProxyType({})
CUT = (OSError, http.client.HTTPException)  # what a connection ends with that doesn't end well


class PassingError(Exception):
    """What may be gone at the next try. `after`: seconds that the registry asks to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class Answer:
    """A response whose body isn't read yet."""

    status: int
    headers: Message
    body: IO[bytes]

    def close(self) -> None:
        """Let the connection go."""
        self.body.close()


@dataclass(frozen=True)
class Reply:
    """A response with its whole body, which is small."""

    status: int
    headers: Message
    data: bytes

    def json(self, what: str) -> Record:
        """The JSON object that it is; raises PublishError."""
        try:
            value = parse(self.data)
        except ValueError as error:
            raise PublishError(f"{what} must answer with JSON: {error}. Check the reference.") from None
        if not isinstance(value, dict):
            raise PublishError(f"{what} must answer with one JSON object. Check the reference.")
        return value

    @property
    def said(self) -> str:
        """Status and reason, where it wasn't what was asked for."""
        try:
            errors = json.loads(self.data)["errors"]
            words = "; ".join(str(one.get("message") or one.get("code")) for one in errors)
        except (ValueError, KeyError, TypeError, AttributeError):
            words = ""
        return f"{self.status} ({scrubbed(words)[:200] or 'without a reason'})"


def steadily(do: Callable[[], Done], what: str, final: tuple[type[Exception], ...] = ()) -> Done:
    """`do`, again after a while where it raises PassingError; PublishError when it keeps doing so. `final`: kinds of
    PassingError that are the caller's to answer."""
    for wait in (*WAITS, None):
        try:
            return do()
        except final:
            raise
        except PassingError as error:
            after = error.after or 0.0
            if wait is None or after > LONGEST_WAIT:
                tries = f"{len(WAITS) + 1} tries failed" if wait is None else f"it asks to wait {after:.0f} s"
                where = "" if str(error).startswith(what) else f"{what}: "
                raise PublishError(f"{where}{error}; {tries}. Run the command again later.") from None
            time.sleep(max(wait, after))
    raise AssertionError("unreachable")


class Web:
    """Requests to one registry, `base` its URL without a path."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.host = urllib.parse.urlsplit(base).netloc
        self._tokens: dict[str, str] = {}
        self._login: Login | None = None
        self._asked = False

    def send(
        self,
        method: str,
        url: str,
        scope: str,
        headers: Mapping[str, str] = _NONE,
        body: Callable[[], Iterable[bytes]] | None = None,
        size: int = 0,
    ) -> Answer:
        """One request, with a login if one is demanded. `scope`: what a token must allow; `body`: `size` bytes.

        Raises PassingError for what may pass, PublishError where access is refused; other answers are the caller's.
        """
        for attempt in range(2):
            answer = self._send(method, url, scope, headers, body, size)
            if answer.status != 401:
                break
            with closing(answer):
                if attempt or split(url, self.host).netloc != self.host:
                    raise self._refused()
                self._log_in(answer.headers.get_all("WWW-Authenticate") or [], scope)
        if answer.status != 403 and answer.status not in _PASSING:
            return answer
        with closing(answer):
            said = reply_of(answer, self.host).said
        if answer.status == 403:
            who = f"{self._login.user} " if self._login and self._login.user else ""
            raise PublishError(
                f"{self.host} denies {who}what was asked for: {said}. Log in as who may: docker login {self.host}."
            )
        raise PassingError(f"{self.host} answers {said}", _retry_after(answer.headers))

    def ask(
        self, method: str, url: str, scope: str, headers: Mapping[str, str] = _NONE, body: bytes | None = None
    ) -> Reply:
        """The same where both bodies are small, repeated while it may help."""

        def once() -> Reply:
            sent = None if body is None else lambda: (body,)
            with closing(self.send(method, url, scope, headers, sent, len(body or b""))) as answer:
                return reply_of(answer, self.host)

        return steadily(once, self.host)

    def _send(
        self,
        method: str,
        url: str,
        scope: str,
        headers: Mapping[str, str],
        body: Callable[[], Iterable[bytes]] | None,
        size: int,
    ) -> Answer:
        request = urllib.request.Request(url, method=method, data=body() if body else None, headers=dict(headers))
        if body or method in ("POST", "PUT", "PATCH"):
            request.add_header("Content-Length", str(size))
            if not request.has_header("Content-type"):
                request.add_header("Content-Type", "application/octet-stream")
        if split(url, self.host).netloc == self.host and scope in self._tokens:
            request.add_unredirected_header("Authorization", self._tokens[scope])
        return open_url(request, self.host)

    def _log_in(self, challenges: list[str], scope: str) -> None:
        if not self._asked:
            self._login, self._asked = login_of(self.host), True
        for challenge in challenges:
            kind, _, rest = challenge.partition(" ")
            said = dict(re.findall(r'(\w+)="([^"]*)"', rest))
            if kind.lower() == "basic" and self._login and not self._login.identity:
                self._tokens[scope] = self._login.basic
                return
            if kind.lower() == "bearer" and "realm" in said:
                self._tokens[scope] = f"Bearer {self._token(said, scope)}"
                return
        raise self._refused()

    def _token(self, said: Mapping[str, str], scope: str) -> str:
        """A token of the place that the registry names: https://distribution.github.io/distribution/spec/auth/token/."""
        realm, login, place = said["realm"], self._login, f"{self.host}'s place for tokens"
        if split(realm, self.host).scheme not in ("https", urllib.parse.urlsplit(self.base).scheme):
            raise PublishError(f"{self.host} must name an https place for tokens, it names another. Ask its operator.")
        scopes = sorted({*scope.split(), *said.get("scope", "").split()})
        fields = [("service", said["service"])] if "service" in said else []
        if login and login.identity:
            fields += [("grant_type", "refresh_token"), ("refresh_token", login.secret), ("client_id", "knobcast")]
            data = urllib.parse.urlencode([*fields, ("scope", " ".join(scopes))]).encode()
            request = urllib.request.Request(realm, data=data, method="POST")
        else:
            query = urllib.parse.urlencode([*fields, *(("scope", one) for one in scopes)])
            request = urllib.request.Request(f"{realm}{'&' if '?' in realm else '?'}{query}")
            if login:
                request.add_unredirected_header("Authorization", login.basic)
        with closing(open_url(request, self.host)) as answer:
            if answer.status in _PASSING:
                raise PassingError(f"{place} answers {answer.status}", _retry_after(answer.headers))
            if answer.status != 200:
                raise self._refused()
            found = reply_of(answer, self.host).json(place)
        token = found.get("token") or found.get("access_token")
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise PublishError(f"{place} must answer with a token. Try again later.")
        return token

    def _refused(self) -> PublishError:
        if self._login is None:
            return PublishError(f"{self.host} demands a login, none is known. Log in: docker login {self.host}.")
        return PublishError(f"{self.host} refuses the login that is known. Log in again: docker login {self.host}.")


def split(url: str, host: str) -> urllib.parse.SplitResult:
    """A URL that `host` named; raises PublishError where it is none."""
    try:
        return urllib.parse.urlsplit(url)
    except ValueError as error:
        raise PublishError(
            f"{host} must name URLs, it names {scrubbed(url)[:80]!r} ({error}). Ask its operator."
        ) from None


def open_url(request: urllib.request.Request, host: str) -> Answer:
    """The answer, whatever its status; raises PassingError where there is none, PublishError where none will be."""
    try:
        found = urllib.request.urlopen(request, timeout=_TIMEOUT)
        return Answer(found.status, found.headers, found)
    except urllib.error.HTTPError as answer:
        return Answer(answer.code, answer.headers, answer)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise PublishError(
                f"{host}: its certificate isn't trusted ({error.reason.verify_message}). Name the file of its "
                "authority in SSL_CERT_FILE, or for a registry without TLS write oci+http://."
            ) from None
        raise PassingError(f"{host} can't be reached ({scrubbed(error.reason)})") from None
    except CUT as error:
        raise PassingError(f"{host} cut the connection ({scrubbed(error) or type(error).__name__})") from None
    except (ValueError, OverflowError) as error:  # names and ports that none can have
        raise PublishError(f"{host} isn't the address of a registry ({scrubbed(error)}). Check it.") from None


def reply_of(answer: Answer, what: str) -> Reply:
    """An answer with all of its small body."""
    try:
        data = answer.body.read(_LARGEST + 1)
    except CUT as error:
        raise PassingError(f"{what} cut the connection ({scrubbed(error) or type(error).__name__})") from None
    if len(data) > _LARGEST:
        raise PublishError(f"{what} must answer with at most {_LARGEST:,} bytes, it sends more. Check the reference.")
    return Reply(answer.status, answer.headers, data)


def pieces_in(answer: Answer) -> Iterator[bytes]:
    """The body, a piece at a time, until it ends or is cut: who reads it knows how much there must be."""
    with suppress(*CUT):
        while piece := answer.body.read(PIECE):
            yield piece


def _retry_after(headers: Message) -> float | None:
    value = headers.get("Retry-After")
    return float(value) if value is not None and re.fullmatch(r"\d{1,6}", value) else None
