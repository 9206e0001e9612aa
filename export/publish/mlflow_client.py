"""mlflow-skinny as a publisher needs it: runs that hold files, versions that name them, errors as one sentence.

Credentials are the client's own: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN, or its
credentials file. Imported where mlflow is installed alone, by `mlflow.py`, which sets what mlflow reads at import.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

from google.protobuf.json_format import ParseError
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import augmented_raise_for_status, http_request
from requests.exceptions import RequestException

from export.publish import patience
from export.publish.content import Content, Item
from export.publish.publisher import PIECE, pieces_of, scrubbed
from transform.errors import KnobcastError, PublishError
from transform.scratch import scratch

TAG = "knobcast."
DIGEST, SOURCE, VERSION = f"{TAG}digest", f"{TAG}source", f"{TAG}version"
PLACE = "variant"  # the folder of a run that holds the files
_TAG_LIMIT = 5000  # characters of a value
_NUMBERS = ("accuracy", "accuracy_drop", "bytes", "parameters", "active_parameters")
_NAMES = ("latency_ms.",)
_LOGGERS = ("mlflow", "urllib3", "requests")
# the client's, at an answer that no MLflow gives
_MISREAD = (
    ParseError, SystemError, ValueError, KeyError, TypeError, AttributeError, IndexError, NameError, AssertionError,
    ArithmeticError,
)  # fmt: skip
_Result = TypeVar("_Result")


class Registry:
    """One registered model of a server, and the runs that hold the files of its versions."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self._client = MlflowClient(url, url)

    def model(self) -> RegisteredModel | None:
        """None: there is none of that name."""
        found = _found(lambda: self._client.get_registered_model(self.name))
        if found is not None and found.name != self.name:
            raise PublishError(f"{self.url} must be an MLflow server, it answers otherwise. Check the address.")
        return found

    def versions(self, digest: str | None = None) -> list[ModelVersion]:
        """Of the model, of a content where that is named; the newest first."""
        of_it = f" and tags.`{DIGEST}` = '{digest}'" if digest is not None else ""
        found = self._client.search_model_versions(f"name = '{self.name}'{of_it}", max_results=1000)
        return sorted(found, key=lambda version: -int(version.version))

    def version(self, number: str) -> ModelVersion | None:
        """By MLflow's own number."""
        return _found(lambda: self._client.get_model_version(self.name, number))

    def aliased(self, alias: str) -> ModelVersion | None:
        """What an alias names."""
        return _found(lambda: self._client.get_model_version_by_alias(self.name, alias))

    def run_of(self, digest: str) -> str | None:
        """The newest run that was begun for a content."""
        experiment = self._client.get_experiment_by_name(self.name)
        if experiment is None:
            return None
        runs = self._client.search_runs([experiment.experiment_id], f"tags.`{DIGEST}` = '{digest}'", max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def begin(self, content: Content) -> str:
        """A run for a content, with its knobs as tags and its numbers as metrics."""
        experiment = self._client.get_experiment_by_name(self.name)
        place = experiment.experiment_id if experiment else self._client.create_experiment(self.name)
        run = str(self._client.create_run(place, tags=tags_of(content), run_name=content.version).info.run_id)
        for name, value in content.tags.items():
            if name in _NUMBERS or name.startswith(_NAMES):
                self._client.log_metric(run, name, float(value))
        return run

    def sizes(self, run: str, folder: str = PLACE) -> dict[str, int]:
        """Path -> bytes of the files that a run holds."""
        self._place(run)
        found: dict[str, int] = {}
        for file in self._client.list_artifacts(run, folder):
            if file.is_dir:
                found |= self.sizes(run, file.path)
            else:
                found[file.path.removeprefix(f"{PLACE}/")] = file.file_size or 0
        return found

    def send(self, run: str, directory: Path, item: Item) -> None:
        """One file, streamed."""
        self._place(run)
        folder, _, _ = f"{PLACE}/{item.path}".rpartition("/")
        self._client.log_artifact(run, str(directory / item.path), folder)

    def pieces(self, run: str, path: str) -> Iterator[bytes]:
        """A file's bytes as the server sends them; by way of a temporary file where it doesn't hold them itself."""
        store = get_artifact_repository(self._place(run), tracking_uri=self.url)
        if isinstance(store, HttpArtifactRepository):
            address = f"/{quote(f'{PLACE}/{path}')}"
            with http_request(get_default_host_creds(store.artifact_uri), address, "GET", stream=True) as response:
                augmented_raise_for_status(response)
                yield from response.iter_content(PIECE)
            return
        with scratch("mlflow") as place:
            yield from pieces_of(Path(store.download_artifacts(f"{PLACE}/{path}", str(place))), lambda _: None)

    def register(self, run: str, content: Content) -> None:
        """A version of the model, which is made where there is none."""
        if self.model() is None:
            self._client.create_registered_model(self.name, {SOURCE: content.name})
        uri = f"{self._place(run)}/{PLACE}"
        self._client.create_model_version(self.name, uri, run, tags_of(content), await_creation_for=60)
        self._client.update_run(run, "FINISHED")

    def _place(self, run: str) -> str:
        """Where a run's files are kept, as the server says; PublishError where the client would take that for a folder
        of this machine, and read and write there what the server names."""
        place = str(self._client.get_run(run).info.artifact_uri)
        if urlsplit(place).scheme in ("", "file"):
            raise PublishError(
                f"{self.name} at {self.url}: the server must keep the files, it names a folder of whoever asks. Start "
                "it with --serve-artifacts, or with a store that all can reach."
            )
        return place

    def discard(self, run: str) -> None:
        """A run whose files are damaged: the next push begins another one."""
        self._client.delete_run(run)

    def move(self, alias: str, number: str) -> None:
        """Make an alias name a version."""
        self._client.set_registered_model_alias(self.name, alias, number)


def tags_of(content: Content) -> dict[str, str]:
    """Tags of a run and of a version."""
    said = {**content.tags, "digest": content.digest, "version": content.version, "source": content.name}
    return {f"{TAG}{name}": value[:_TAG_LIMIT] for name, value in said.items()}


def patiently(call: Callable[[], _Result]) -> _Result:
    """Repeat a download that was cut; what isn't answered at all mlflow repeats itself."""
    return patience.patiently(call, RequestException, lambda error: error.response is None)


def _found(call: Callable[[], _Result]) -> _Result | None:
    try:
        return call()
    except MlflowException as error:
        if error.get_http_status_code() == 404 or "not found" in str(error):
            return None
        raise


@contextmanager
def calm(url: str, name: str) -> Iterator[Registry]:
    """The client without its log; its errors as PublishErrors."""
    loggers = [logging.getLogger(logger) for logger in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield Registry(url, name)
    except KnobcastError:
        raise
    except (MlflowException, RequestException, OSError, ModuleNotFoundError, *_MISREAD) as error:
        raise _told(error, f"{name} at {url}") from None  # its text may hold addresses with signatures
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _told(error: Exception, what: str) -> PublishError:
    """The error for people."""
    said = "".join(c if c.isprintable() else " " for c in scrubbed(error))[:300].strip()
    status = _status(error)
    if status == 401:
        way_out = (
            "the server wants credentials (401): there are none, or they are wrong. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
        return PublishError(f"{what}: {way_out}")
    if status == 403:
        return PublishError(f"{what}: the credentials don't allow this (403). Use those of someone who may write.")
    if isinstance(error, ModuleNotFoundError):
        return PublishError(
            f"{what}: the server keeps its files elsewhere, for which mlflow needs the package {error.name}. Install "
            "it, or let the server serve its artifacts (--serve-artifacts)."
        )
    if isinstance(error, _MISREAD):
        return PublishError(f"{what}: the server must answer as MLflow does, it doesn't ({said}). Check the address.")
    if "Max retries exceeded" in said or isinstance(error, RequestException):
        return PublishError(
            f"{what}: the server can't be reached, fails, or closed the connection. Check the address and its log and "
            "run the command again: what arrived whole stays there."
        )
    return PublishError(f"{what}: the server or its client refuses: {said}. Check the address and run it again.")


def _status(error: Exception) -> int | None:
    if isinstance(error, RequestException):
        return None if error.response is None else int(error.response.status_code)
    return int(error.get_http_status_code()) if isinstance(error, MlflowException) else None
