"""`mlflow://HOST:PORT/NAME`: a registered model on an MLflow server, a version per variant, by the extra [mlflow].

The files of a version lie in a run. They are sent one after the other, the manifest last; then each is read back, and
only then the version is registered: what the registry names is whole. MLflow keeps every version's files in full.
"""

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from export.publish.content import Content, Item, digest_in
from export.publish.publisher import (
    MOST,
    SMALL,
    Receipt,
    Transfer,
    check_alias,
    check_owner,
    differs,
    digest_of,
    insist_on,
    listed_in,
    receive,
)
from transform.errors import PublishError
from transform.ownership import MANIFEST, SIGNATURE, SUMS
from transform.progress import Progress
from transform.write import insist_on_space

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from mlflow.entities.model_registry import ModelVersion

    from export.publish.mlflow_client import Registry

_REST = re.compile(
    r"(?P<host>(?:[A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]+\])(?::\d+)?)"
    r"/(?P<name>[\w\-.]+(?: [\w\-.]+)*)(?:/(?P<version>[\w.\-]+))?"
)
_ALIAS = re.compile(r"(?!(?i:latest|v\d+)\Z)[\w\-]+")
_TLS = "mlflow+https"
# What mlflow reads at import: it reports nothing of its use, shows no bars, and gives up within a minute.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


def open_mlflow(rest: str, scheme: str = "mlflow") -> "MLflow":
    """`mlflow://HOST:PORT/NAME` or `mlflow+https://`, for a pull with `/VERSION`: ours, MLflow's number or an alias."""
    if "@" in rest:
        raise PublishError(
            f"{scheme}: takes no credentials in its address. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
    match = _REST.fullmatch(rest)
    if match is None:
        raise PublishError(
            f"{scheme}: must name a server and a registered model, got {rest[:80]!r}. Give both, such as "
            f"{scheme}://localhost:5000/small."
        )
    insist_on("mlflow")
    return MLflow(scheme, match["host"], match["name"], match["version"])


open_mlflow_tls = partial(open_mlflow, scheme=_TLS)


@dataclass(frozen=True)
class MLflow:
    """A registered model; `version`: what a pull takes."""

    scheme: str
    host: str
    name: str
    version: str | None = None

    @property
    def target(self) -> str:
        """As a user writes it, without a version."""
        return f"{self.scheme}://{self.host}/{self.name}"

    def plan(self, content: Content, alias: str | None = None) -> Transfer:
        """A version with the content's digest has all; a run that was begun for it may have some."""
        if self.version is not None:
            raise PublishError(f"a push makes the version itself, got /{self.version}. Leave that out.")
        if alias is not None:
            _check_alias(alias)
        with self._registry() as registry:
            self._check_owner(registry, content)
            if alias is not None:
                _check_alias_owner(registry, alias, content)
            if known := registry.versions(content.digest):
                unsigned = None if _is_signed(registry, str(known[0].run_id), content) else SIGNATURE
                present = frozenset(item.path for item in content.items if item.path != unsigned)
            else:
                run = registry.run_of(content.digest)
                sizes = {} if run is None else registry.sizes(run)
                present = frozenset(item.path for item in content.items if sizes.get(item.path) == item.size)
        return Transfer(self.target, content, present, alias)

    def push(self, transfer: Transfer, tick: Progress) -> Receipt:
        """The files into a run; `confirm` registers them."""
        content = transfer.content
        with self._registry() as registry:
            known = registry.versions(content.digest)
            run = str(known[0].run_id) if known else registry.run_of(content.digest) or registry.begin(content)
            for item in (i for i in transfer.moving if not known or i.path == SIGNATURE):
                registry.send(run, content.directory, item)
                tick(item.size)
        return Receipt(f"{self.target}/{content.version}", run)

    def confirm(self, receipt: Receipt, content: Content) -> None:
        """Read every file of the run back, then register the version where it isn't yet."""
        from export.publish.mlflow_client import patiently

        with self._registry() as registry:
            run, known = receipt.digest, registry.versions(content.digest)
            try:
                listed, wanted = registry.sizes(run), {item.path for item in content.items}
                if odd := sorted((listed.keys() ^ wanted) - ({SIGNATURE} - wanted)):
                    raise PublishError(
                        f"{self.target}: {odd[0]} {'lacks' if odd[0] in wanted else 'is too much'} there."
                    )
                for item in content.items:
                    found = patiently(partial(_digest, registry, run, item))
                    if found != item.sha256:
                        raise differs(f"{self.target}: {item.path}", item.sha256, found)
            except PublishError as error:
                if known:
                    raise PublishError(f"{error} It is version {known[0].version}: delete that first.") from None
                registry.discard(run)
                raise
            if not known:
                registry.register(run, content)

    def move_alias(self, receipt: Receipt, content: Content, alias: str) -> None:
        """MLflow's own alias, in one step."""
        with self._registry() as registry:
            _check_alias_owner(registry, alias, content)
            made = next(version for version in registry.versions(content.digest) if version.run_id == receipt.digest)
            registry.move(alias, str(made.version))

    def fetch(self, reference: str, into: Path, tick: Progress) -> None:
        """What the version's own SHA256SUMS names, streamed."""
        from export.publish.mlflow_client import patiently

        scheme, _, rest = reference.partition("://")
        wanted = open_mlflow(rest, scheme)
        with wanted._registry() as registry:
            run = str(wanted._named(registry).run_id)

            def bring(path: str, sha256: str | None, limit: int) -> None:
                def once() -> None:
                    (into / path).unlink(missing_ok=True)
                    receive(registry.pieces(run, path), into / path, sha256, limit, tick)

                patiently(once)

            sizes = registry.sizes(run)
            insist_on_space(sum(sizes.values()), into, "OUT")
            for name in (SUMS, MANIFEST, *({SIGNATURE} & sizes.keys())):
                bring(name, None, SMALL)
            for path, sha256 in listed_in(into).items():
                bring(path, sha256, sizes.get(path) or MOST)

    def _registry(self) -> "AbstractContextManager[Registry]":
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        from export.publish.mlflow_client import calm

        return calm(f"{'https' if self.scheme == _TLS else 'http'}://{self.host}", self.name)

    def _named(self, registry: "Registry") -> "ModelVersion":
        from export.publish.mlflow_client import DIGEST, VERSION

        versions = registry.versions()
        if self.version is None:
            found = versions[0] if versions else None
        elif self.version.isdecimal():
            found = registry.version(self.version)
        elif digest_in(self.version):
            found = next((version for version in versions if version.tags.get(VERSION) == self.version), None)
        else:
            found = registry.aliased(self.version)
        if found is None:
            offered = ", ".join(version.tags.get(VERSION, version.version) for version in versions[:5])
            raise PublishError(
                f"{self.target} must have the version or alias {self.version or 'that is newest'}, there is none. "
                f"{f'Give one of {offered}' if offered else 'Check the name'}."
            )
        if DIGEST not in found.tags:
            raise PublishError(
                f"{self.target}: version {found.version} is no variant that push made. Give another one."
            )
        return found

    def _check_owner(self, registry: "Registry", content: Content) -> None:
        from export.publish.mlflow_client import SOURCE

        model = registry.model()
        if model is None:
            return
        owner = model.tags.get(SOURCE)
        if owner is None and registry.versions():
            raise PublishError(
                f"{self.target} must be new or made by push, and has versions that push didn't make. Give another NAME."
            )
        if owner not in (None, content.name):
            raise PublishError(
                f"a registered model has versions of one source: {self.target} has those of {owner[:80]}, this is one "
                f"of {content.name}. Give another NAME."
            )


def _digest(registry: "Registry", run: str, item: Item) -> str:
    return digest_of(registry.pieces(run, item.path), item.size)


def _is_signed(registry: "Registry", run: str, content: Content) -> bool:
    """Whether a run holds the content's signature, which may come later than the version, and change."""
    own = next((item for item in content.items if item.path == SIGNATURE), None)
    return own is not None and SIGNATURE in registry.sizes(run) and _digest(registry, run, own) == own.sha256


def _check_alias(alias: str) -> None:
    check_alias(alias)
    if not _ALIAS.fullmatch(alias):
        raise PublishError(
            f"MLflow's aliases have letters, digits, '_' and '-', and it keeps latest and v1, v2 … for itself, got "
            f"{alias!r}. Give one such as edge-prod."
        )


def _check_alias_owner(registry: "Registry", alias: str, content: Content) -> None:
    from export.publish.mlflow_client import SOURCE

    there = registry.aliased(alias)
    check_owner(alias, None if there is None else there.tags.get(SOURCE), content)
