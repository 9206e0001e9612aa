"""Who the user is at a registry: from where docker, podman and oras keep it. Never an option, never printed.

Files are those of `docker login` (config.json, with credential helpers) and `podman login` (auth.json).
"""

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from transform.errors import CheckpointError, PublishError
from transform.strict_json import Record, read_json

_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]*")
_PATIENCE = 30  # seconds, for a helper that may ask a keyring
_TOKEN_USER = "<token>"  # how helpers say that the secret is an identity token
DOCKER_HUB = "registry-1.docker.io"
_ALIASES = {DOCKER_HUB: ("index.docker.io", "docker.io", DOCKER_HUB)}


@dataclass(frozen=True)
class Login:
    """`identity`: the secret is an identity token, to be exchanged for tokens."""

    user: str
    secret: str = field(repr=False)
    identity: bool = False

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.secret}".encode()).decode()


def login_of(host: str) -> Login | None:
    """The login for `host[:port]`; None: there is none. Raises PublishError for files and helpers that are broken."""
    names = _ALIASES.get(host, (host,))
    for path in _files():
        try:
            config = read_json(path)
        except CheckpointError as error:
            raise PublishError(f"{path}: logins can't be read from it. Log in again: docker login {host}.") from error
        for name in names:
            if found := _in_config(config, name, path):
                return found
    return None


def _files() -> Iterator[Path]:
    home = Path.home()
    docker = Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    places = (
        *([Path(os.environ["REGISTRY_AUTH_FILE"])] if os.environ.get("REGISTRY_AUTH_FILE") else []),
        docker,
        *([Path(runtime) / "containers/auth.json"] if runtime else []),
        home / ".config/containers/auth.json",
    )
    yield from (path for path in places if path.is_file())


def _in_config(config: Record, host: str, path: Path) -> Login | None:
    helpers, auths = config.get("credHelpers"), config.get("auths")
    own = helpers.get(host) if isinstance(helpers, dict) else None
    if (helper := own or config.get("credsStore")) and (found := _ask(str(helper), host)):
        return found
    for key, entry in (auths if isinstance(auths, dict) else {}).items():
        if _host_in(key) == host and isinstance(entry, dict) and (entry.get("auth") or entry.get("identitytoken")):
            return _stored(entry, host, path)
    return None


def _stored(entry: Record, host: str, path: Path) -> Login:
    try:
        user, _, secret = base64.b64decode(str(entry.get("auth") or ""), validate=True).decode().partition(":")
    except ValueError:
        raise PublishError(f"{path}: the login for {host} can't be read. Log in again: docker login {host}.") from None
    if token := entry.get("identitytoken"):
        return Login(user, str(token), identity=True)
    return Login(user, secret)


def _host_in(key: str) -> str:
    return re.sub(r"^https?://", "", key).partition("/")[0]


def _ask(helper: str, host: str) -> Login | None:
    """None where the helper knows of no login, as it says by its exit code."""
    asked = "https://index.docker.io/v1/" if host == "index.docker.io" else host
    if not _HELPER.fullmatch(helper):
        raise PublishError(
            f"a credential helper must have a plain name, got {helper[:40]!r}. Mend docker's config.json."
        )
    command = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [command, "get"], input=asked, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no answer for {_PATIENCE} s"
        raise PublishError(
            f"{command}, which docker's config.json names: {reason}. Log in again: docker login."
        ) from None
    if done.returncode != 0:
        return None
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise PublishError(
            f"{command} must answer with a JSON object of a login. Log in again: docker login."
        ) from None
    return Login("" if user == _TOKEN_USER else user, secret, identity=user == _TOKEN_USER)
