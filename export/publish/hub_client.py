"""huggingface_hub as a publisher needs it: quiet, with time limits and patience.

Credentials are the client's own: HF_TOKEN, or what `hf auth login` stored. HF_ENDPOINT names another Hub than
huggingface.co, HF_HUB_DISABLE_XET=1 one without Xet storage. Imported where huggingface_hub is installed alone.
"""

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
from huggingface_hub.utils import _http, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from export.publish import patience
from export.publish.content import Item
from export.publish.hub_errors import HTTP, MISREAD, told
from export.publish.publisher import Transfer
from transform.progress import Progress
from transform.strict_json import Record

if TYPE_CHECKING:
    import httpx2  # of the newer versions of huggingface_hub; the older ones have httpx

_LIMIT = 120.0  # seconds without a byte; the client's own limit is none
_PASSING = (408, 429, 500, 502, 503, 504)
_BATCH = 256
_LOGGERS = ("huggingface_hub", "httpx2", "httpcore2", "httpx", "httpcore")
_ATTRIBUTES = ".gitattributes"  # the Hub's own
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Listed:
    """A file of a commit as the Hub lists it. `oid`: git's name of the blob; `sha256`: of a large file's content."""

    oid: str
    sha256: str | None
    size: int


@dataclass(frozen=True)
class Refs:
    """Name -> commit."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]


class _Counted(CommitOperationAdd):
    """A file whose bytes are counted as they are read, once each, whoever reads it how often."""

    def watch(self, tick: Progress, sha256: str) -> "_Counted":
        self._tick, self._seen = tick, 0
        self.upload_info.sha256 = bytes.fromhex(sha256)  # known: it need not be read for it
        return self

    def reach(self, place: int) -> None:
        if place > self._seen:
            self._tick(place - self._seen)
            self._seen = place

    @contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:  # noqa: ARG002 -- its callers' word
        with _Counting(str(self.path_or_fileobj), self.reach) as file:
            yield cast(BinaryIO, file)


class _Counting(io.FileIO):
    def __init__(self, path: str, reach: Progress) -> None:
        super().__init__(path, "rb")
        self._reach = reach

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size)
        self._reach(self.tell())
        return data


class HubClient:
    """One repository of models."""

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)

    def refs(self) -> Refs | None:
        """Branches and tags; None: there is no such repository."""
        try:
            found = patiently(lambda: self._api.list_repo_refs(self.repository))
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:  # without valid credentials the Hub says so of every repository
                raise
            return None
        return Refs({b.name: b.target_commit for b in found.branches}, {t.name: t.target_commit for t in found.tags})

    def commit_of(self, revision: str) -> str:
        """The commit that a branch, a tag or a commit's own name names now."""
        return str(patiently(lambda: self._api.model_info(self.repository, revision=revision)).sha)

    def create(self, private: bool) -> None:
        """The repository."""
        patiently(lambda: self._api.create_repo(self.repository, private=private, exist_ok=True))

    def branch(self, name: str, commit: str) -> None:
        """A branch that begins at a commit; nothing where it exists."""
        patiently(lambda: self._api.create_branch(self.repository, branch=name, revision=commit, exist_ok=True))

    def listing(self, commit: str) -> dict[str, Listed]:
        """Path -> file, but for the Hub's own .gitattributes."""
        found = patiently(lambda: list(self._api.list_repo_tree(self.repository, recursive=True, revision=commit)))
        return {
            entry.path: Listed(entry.blob_id, entry.lfs.sha256 if entry.lfs else None, entry.size)
            for entry in found
            if isinstance(entry, RepoFile) and entry.path != _ATTRIBUTES
        }

    def stored(self, items: Iterable[Item]) -> set[str]:
        """SHA-256 of those whose bytes the large file storage has for this repository, in whatever commit."""
        infos = [UploadInfo(item.size, b"", bytes.fromhex(item.sha256)) for item in items if item.size]
        found: set[str] = set()
        for start in range(0, len(infos), _BATCH):
            some = infos[start : start + _BATCH]
            known, _, _ = patiently(partial(self._batch, some))
            found |= {str(blob["oid"]) for blob in known if blob.get("actions") is None}
        return found

    def _batch(self, infos: list[UploadInfo]) -> tuple[list[Record], list[Record], str | None]:
        return post_lfs_batch_info(infos, None, "model", self.repository, endpoint=self._api.endpoint)

    def send(
        self, transfer: Transfer, items: Iterable[Item], remove: Iterable[str], parent: str, tick: Progress
    ) -> bool:
        """One commit on the version's branch, if its head is `parent`; what the storage has already isn't sent."""
        content, added = transfer.content, list[_Counted]()
        for item in items:
            told_bytes = (lambda _: None) if item.path in transfer.present else tick
            added.append(_Counted(item.path, content.directory / item.path).watch(told_bytes, item.sha256))
        operations = [*added, *map(CommitOperationDelete, remove)]
        made = self._commit(operations, content.version, parent, f"Add {content.version}")
        for file in added:
            file.reach(file.upload_info.size)  # Xet storage reads files by itself
        return made

    def copy(
        self, paths: Iterable[str], remove: Iterable[str], source: str, branch: str, parent: str, message: str
    ) -> bool:
        """One commit on a branch, if its head is `parent`: files as `source` has them; no large one moves."""
        copied = [CommitOperationCopy(path, path, src_revision=source) for path in paths]
        return self._commit([*copied, *map(CommitOperationDelete, remove)], branch, parent, message)

    def _commit(
        self,
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete],
        branch: str,
        parent: str,
        message: str,
    ) -> bool:
        try:
            patiently(
                lambda: self._api.create_commit(
                    self.repository, operations, commit_message=message, revision=branch, parent_commit=parent
                )
            )
        except HfHubHTTPError as error:
            if error.response.status_code != 412:
                raise
            return False  # another one was first; or this one was, and its answer was lost
        return True

    def download(self, path: str, commit: str, again: bool = False) -> Path:
        """A file by way of the client's cache, which keeps what came whole; `again`: not what the cache has."""
        return Path(
            hf_hub_download(self.repository, path, revision=commit, endpoint=self._api.endpoint, force_download=again)
        )


def patiently(call: Callable[[], _Result]) -> _Result:
    """Repeat a call that may be repeated while the Hub is busy, failing, or cuts the connection."""
    return patience.patiently(
        call, HTTP, lambda error: not isinstance(error, HfHubHTTPError) or error.response.status_code in _PASSING
    )


@contextmanager
def calm(repository: str) -> Iterator[HubClient]:
    """The client without bars, warnings and logged addresses, which hold signatures; its errors as PublishErrors."""
    factory = _http._GLOBAL_CLIENT_FACTORY  # there is no other way to ask for it
    bars, loggers = not are_progress_bars_disabled(), [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]

    def limited() -> "httpx2.Client":
        client = factory()
        client.timeout = _LIMIT
        return client

    _http.set_client_factory(limited)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            disable_progress_bars()
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield HubClient(repository)
    except (HTTP, OSError, ValueError, RuntimeError, EntryNotFoundError, *MISREAD) as error:
        raise told(error, repository) from None  # its text may hold addresses with signatures
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        _http.set_client_factory(factory)
        if bars:
            enable_progress_bars()
