"""Many independent jobs, each done once: results are kept in a folder, so that a stopped run goes on where it was.

Knows nothing of models. A job is a JSON object that says everything its result depends on; where jobs run is the
business of an executor (`importance/executors.py`, or any object with `submit`).
"""

import base64
import binascii
import hashlib
import io
import json
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, cast

import numpy as np

from importance.atomic import SUFFIX, sweep_staged, write_atomically
from transform.arrays import Array
from transform.errors import KnobcastError, WriteError
from transform.progress import Progress

Object = dict[str, object]  # a job or a result as JSON gives it back; what its keys are, the function alone knows
R = TypeVar("R", bound=Mapping[str, object])
ARRAY = 1000  # submissions at once where the executor has `batch`: the usual limit of a Slurm job array
POLL_SECONDS = 1.0  # between looks at results that can't be waited for
REASON = 400  # characters of the first reason in the message; `failed` has all of them whole
STALE_SECONDS = 86_400  # another machine's temporary file this old belongs to no running job


class JobsError(KnobcastError):
    """Some jobs failed; `failed` has (spec, reason) of each. The results of the others are kept."""

    failed: tuple[tuple[Object, str], ...] = ()


class Outcome(NamedTuple):
    """What a worker sends back: a result, or a reason with its traceback. `final`: trying again can't help."""

    result: Object | None
    reason: str = ""
    trace: str = ""
    final: bool = False


class Handle(Protocol):
    """A job that was submitted, such as a `Future`. Where it has `done` and `cancel`, they are used."""

    def result(self) -> Outcome:
        """Waits; raises what kept the job from giving an outcome."""


class Submits(Protocol):
    """Where jobs run: a `concurrent.futures.Executor`, submitit's. Where it has `batch`, many are submitted inside."""

    def submit(self, fn: Callable[..., Outcome], /, *args: object) -> Handle:
        """Take a job."""


def run_jobs(
    function: Callable[[Object], R],
    specs: Sequence[Mapping[str, object]],
    store: Path,
    executor: Submits | None = None,
    progress: Progress | None = None,
    retries: int = 1,
) -> list[R]:
    """The result of `function(spec)` for every spec, in their order; what `store` has already isn't computed again.

    Specs and results are JSON objects, arrays packed by `pack`. `function` must be a module's top-level function where
    jobs leave this process. executor: None for this process, one job after the other; else anything with
    `submit(function, *args)` that gives objects with `result()`: a `concurrent.futures.Executor`, submitit's.
    progress: called with how many more are finished, those in `store` included. retries: how often a job that raised
    or whose worker died is tried again; a KnobcastError is bad input and final.

    JobsError: some jobs failed, all others finished. On Ctrl-C what waits is cancelled. Either way a rerun goes on.
    """
    wanted = [_canonical(spec, "a job") for spec in specs]
    copies = Counter(wanted)
    folder = _folder(store)
    found: dict[str, Object] = {}
    failed: dict[str, Outcome] = {}

    def finish(text: str, result: Object) -> None:
        found[text] = result
        failed.pop(text, None)
        if progress is not None:
            progress(copies[text])

    for text in copies:
        kept = _load(folder, text)
        if kept is not None:
            finish(text, kept)
    missing = [text for text in copies if text not in found]
    for _ in range(1 + max(0, retries)):
        with closing(_outcomes(function, missing, folder, executor)) as outcomes:
            for text, outcome in outcomes:
                if outcome.result is None:
                    failed.setdefault(text, outcome)
                    failed[text] = failed[text]._replace(final=outcome.final)
                    continue
                _keep_once(folder, text, outcome.result)
                finish(text, outcome.result)
        missing = [text for text in missing if text in failed and not failed[text].final]
    if failed:
        raise _error(failed, len(copies), folder)
    return cast("list[R]", [found[text] for text in wanted])


def damaged_results(store: Path) -> list[str]:
    """The names of kept results that aren't whole any more, which `run_jobs` computes again."""
    return [path.name for path in sorted(Path(store).glob("*.json")) if not _is_whole(path)]


def work(function: Callable[[Object], Mapping[str, object]], text: str, store: str) -> Outcome:
    """One job, in the process that computes it: what `run_jobs` submits.

    Keeps the result itself where it sees the store, so that a run that is killed loses nothing that was finished.
    """
    folder = Path(store)
    kept = _load(folder, text)
    if kept is not None:  # meanwhile done by another run
        return Outcome(kept)
    try:
        result: Object = json.loads(_canonical(function(json.loads(text)), "a job's result"))
    except KnobcastError as error:
        return Outcome(None, str(error), traceback.format_exc(), final=True)
    except (Exception, SystemExit) as error:  # an exception that can't be pickled would take the pool with it
        return Outcome(None, f"{type(error).__name__}: {error}", traceback.format_exc())
    with suppress(WriteError):  # the run itself keeps it, or says why it can't
        if folder.is_dir():
            _keep(folder, text, result)
    return Outcome(result)


def pack(array: Array) -> str:
    """An array as text for a spec or a result: base64 of zlib of the .npy form; bit-exact, no Python objects."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue(), 6)).decode("ascii")


def unpack(text: str) -> Array:
    """The array that `pack` was given."""
    try:
        data = zlib.decompress(base64.b64decode(text, validate=True))
        found: Array = np.load(io.BytesIO(data), allow_pickle=False)
    except (binascii.Error, zlib.error, ValueError, EOFError) as error:
        raise JobsError(f"a packed array must be what pack() made ({error}). Compute the result again.") from error
    return found


def _outcomes(
    function: Callable[[Object], Mapping[str, object]], texts: Sequence[str], folder: Path, executor: Submits | None
) -> Generator[tuple[str, Outcome], None, None]:
    """(job, outcome) as they finish. Closed early, it cancels what waits and keeps what is finished."""
    if executor is None:
        for text in texts:
            yield text, work(function, text, str(folder))
        return
    left: dict[int, tuple[Handle, str]] = {}
    try:
        refused = []
        for start in range(0, len(texts), ARRAY):
            with executor.batch() if hasattr(executor, "batch") else nullcontext():  # submitit: one job array
                for text in texts[start : start + ARRAY]:
                    try:
                        handle = executor.submit(work, function, text, str(folder))
                    except Exception as error:  # a broken pool takes no more
                        refused.append((text, _died(error)))
                    else:
                        left[id(handle)] = (handle, text)
        for handle in _finished([handle for handle, _ in left.values()]):
            outcome = _outcome(handle)
            yield left.pop(id(handle))[1], outcome
        yield from refused
    finally:
        for handle, text in left.values():
            _give_up(handle, text, folder)


def _finished(handles: Sequence[Handle]) -> Iterator[Handle]:
    futures = [handle for handle in handles if isinstance(handle, Future)]
    if len(futures) == len(handles):
        yield from as_completed(futures)
        return
    while handles:
        # submitit's jobs say whether they are done; what can't say is waited for in order
        polled = [handle for handle in handles if hasattr(handle, "done") and handle.done()]
        ready = polled if hasattr(handles[0], "done") else handles[:1]
        yield from ready
        seen = {id(handle) for handle in ready}
        handles = [handle for handle in handles if id(handle) not in seen]
        if handles and not ready:
            time.sleep(POLL_SECONDS)


def _outcome(handle: Handle) -> Outcome:
    try:
        return Outcome(*handle.result())
    except Exception as error:  # the job's own errors come as outcomes: this is its worker or the way back
        return _died(error)


def _died(error: Exception) -> Outcome:
    reason = f"{type(error).__name__}: {error}"
    return Outcome(None, f"its worker died or refused it ({reason})", "".join(traceback.format_exception(error)))


def _give_up(handle: Handle, text: str, folder: Path) -> None:
    with suppress(Exception):
        cancelled = handle.cancel() if hasattr(handle, "cancel") else None
        if cancelled is False and hasattr(handle, "done") and handle.done():
            outcome = _outcome(handle)
            if outcome.result is not None:
                _keep_once(folder, text, outcome.result)


def _error(failed: Mapping[str, Outcome], jobs: int, folder: Path) -> JobsError:
    first = next(iter(failed.values()))
    reason = " ".join(first.reason.split()).rstrip(".")  # Ray's and submitit's have many lines
    reason = reason if len(reason) <= REASON else f"{reason[:REASON]}…"
    if len(failed) == jobs and {(one.final, one.reason) for one in failed.values()} == {(True, first.reason)}:
        error = JobsError(f"{reason}.")  # one refusal of what was asked: nothing is kept, and the same again can't help
    else:
        error = JobsError(
            f"every job must finish: {len(failed)} of {jobs} failed, the first one because {reason}. "
            f"The other {jobs - len(failed)} are kept in {folder}; run the same again to go on from there."
        )
    error.failed = tuple((json.loads(text), outcome.reason) for text, outcome in failed.items())
    error.add_note(first.trace)
    return error


def _folder(store: Path) -> Path:
    folder = Path(store).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep_staged(folder)
        for path in folder.glob(f".*{SUFFIX}"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
    except OSError as error:
        raise WriteError(f"{folder}: cannot keep results ({error.strerror}). Choose another folder.") from error
    return folder


def _canonical(value: object, what: str) -> str:
    if isinstance(value, dict):
        with suppress(TypeError, ValueError, RecursionError):
            plain = json.loads(json.dumps(value, allow_nan=False))  # keys become text before they are sorted
            return json.dumps(plain, sort_keys=True, separators=(",", ":"))
    shown = repr(value)
    raise JobsError(
        f"{what} must be a JSON object of finite numbers, text and lists, got {shown[:200]}{'…' * (len(shown) > 200)}. "
        "Pack arrays with pack()."
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _load(folder: Path, text: str) -> Object | None:
    """The kept result of a job; None where there is none, or a file that is damaged or of another job."""
    found = _read(folder / f"{_digest(text)}.json")
    return found[1] if found and found[0] == text else None


def _is_whole(path: Path) -> bool:
    found = _read(path)
    return found is not None and path.name == f"{_digest(found[0])}.json"


def _read(path: Path) -> tuple[str, Object] | None:
    """(job, result) of a file; None where it is damaged or absent."""
    try:
        raw = json.loads(path.read_text("utf-8"))
        text, result = _canonical(raw["spec"], ""), raw["result"]
        right = raw["sha256"] == _digest(_canonical(result, ""))
    except (OSError, ValueError, TypeError, KeyError, RecursionError, JobsError):
        return None
    return (text, result) if right else None


def _keep(folder: Path, text: str, result: Object) -> None:
    content = {"spec": json.loads(text), "sha256": _digest(_canonical(result, "")), "result": result}
    write_atomically(folder / f"{_digest(text)}.json", json.dumps(content) + "\n", force=True, sweep=False)


def _keep_once(folder: Path, text: str, result: Object) -> None:
    if _load(folder, text) is None:  # else its worker did
        _keep(folder, text, result)
