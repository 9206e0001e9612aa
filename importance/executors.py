"""Where jobs run: in this process, in several processes of this machine, or on a Ray cluster.

Only names and workers; what a job is stands in `importance/jobs.py`. For Slurm see docs/scale-out.md.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process
from typing import ParamSpec, TypeVar

from transform.errors import KnobcastError

P = ParamSpec("P")
T = TypeVar("T")
EXECUTORS = ("local", "processes", "ray")
THREADS = "OMP_NUM_THREADS"
OBJECT_STORE_BYTES = 256 * 1024**2  # results are small; Ray's own choice is a third of the memory


class ExecutorError(KnobcastError):
    """An executor that doesn't exist, can't start or can't have that many workers."""


@contextmanager
def open_executor(name: str | None = None, workers: int | None = None) -> Iterator[Executor | None]:
    """The executor that `run_jobs` takes; None for `local`, which is this process.

    name: one of EXECUTORS, None for `local`. workers: how many jobs at once; None means one per processor, or what a
    running Ray cluster has. The processors are shared out evenly among the workers' threads, unless OMP_NUM_THREADS
    is set. Leaving normally waits for what runs; on an error or Ctrl-C the workers are ended.
    """
    if name not in (None, *EXECUTORS):
        raise ExecutorError(f"an executor is one of {', '.join(EXECUTORS)}, got {name!r}. Use one of them.")
    if workers is not None and (type(workers) is not int or workers < 1):
        raise ExecutorError(f"--workers must be 1 or more, got {workers!r}. Leave it away for one per processor.")
    if name in (None, "local"):
        if workers not in (None, 1):
            raise ExecutorError(
                f"--executor local is one worker, this process; got --workers {workers}. "
                "Use --executor processes or --executor ray."
            )
        yield None
    elif name == "processes":
        with _processes(workers or processors()) as pool:
            yield pool
    else:
        with RayExecutor(workers) as cluster:
            yield cluster


def processors() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _processes(workers: int) -> Iterator[Executor]:
    before = set(active_children())
    # spawn: a fork of a process in which torch has threads can hang
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (_threads(workers),))
    try:
        yield pool
    except BaseException:
        for child in set(active_children()) - before:  # results are kept whole or not at all
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _threads(workers: int) -> int | None:
    """Threads for each worker; None where the environment says it already."""
    return None if THREADS in os.environ else max(1, processors() // workers)


def _start_worker(threads: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _set_threads(threads)


def _end_with_parent() -> None:
    """A killed parent can't end its workers, and they would wait for its next job for ever, models in memory."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    os.environ[THREADS] = str(threads)  # read when torch is imported: a job without torch needn't pay for it
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


class RayExecutor(Executor):
    """Jobs as Ray tasks: on the cluster that RAY_ADDRESS names, or on a Ray of this machine started for the purpose.

    workers: how many at once on a Ray started here. gpus: what each job gets of a GPU, such as 0.5; without it a
    job sees the machine's GPUs as Ray's settings say. A Ray that this process had already started is left running.
    """

    def __init__(self, workers: int | None = None, gpus: float = 0) -> None:
        try:
            import ray
        except ImportError as error:
            raise ExecutorError(
                f"--executor ray needs the extra [ray], which isn't complete here ({error}). "
                'Run pip install -e ".[ray]", or use --executor processes.'
            ) from error
        self._ray = ray
        self._started = not ray.is_initialized()
        threads = None
        if self._started:
            if os.environ.get("RAY_ADDRESS") and workers is not None:
                raise ExecutorError(
                    f"a running Ray cluster has its own number of workers; got --workers {workers} and "
                    f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}. Leave one of them away."
                )
            threads = self._start(workers)
        options: dict[str, float] = {"max_retries": 0, "num_cpus": 1}  # run_jobs tries again by itself
        if gpus:
            options["num_gpus"] = gpus
        self._task = ray.remote(**options)(_on_ray)
        self._threads = threads
        self._running: dict[object, object] = {}  # a task's future -> Ray's reference to it
        self._open = True

    def _start(self, workers: int | None) -> int | None:
        count = workers or processors()
        local = {"address": "local", "num_cpus": count, "object_store_memory": OBJECT_STORE_BYTES}
        address = os.environ.get("RAY_ADDRESS")
        options = {"address": address} if address else local | {"include_dashboard": False}
        try:
            self._ray.init(log_to_driver=False, logging_level="ERROR", **options)
        except Exception as error:
            where = f"RAY_ADDRESS={address}" if address else "this machine"
            raise ExecutorError(
                f"Ray must answer at {where}: {type(error).__name__}: {error}. Check the cluster, or use "
                "--executor processes."
            ) from error
        return None if address else _threads(count)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """A task; its future fails with one of Ray's errors when the worker dies."""
        if not self._open:
            raise RuntimeError("cannot schedule new futures after shutdown")
        reference = self._task.remote(self._threads, fn, args, kwargs)
        future: Future[T] = reference.future()
        self._running[future] = reference
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[T]) -> None:
        reference = self._running.pop(future, None)
        if future.cancelled() and reference is not None:
            self._ray.cancel(reference, force=True)  # the future alone would let the task run

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the tasks that are left if asked to, wait for the others; stop a Ray that was started here."""
        self._open = False
        left = dict(self._running)
        if cancel_futures:
            for reference in left.values():
                self._ray.cancel(reference, force=True)
        elif wait and left:
            self._ray.wait(list(left.values()), num_returns=len(left))
        if self._started and (wait or cancel_futures):
            self._ray.shutdown()
            self._started = False

    def __exit__(self, kind: object, *_: object) -> None:
        self.shutdown(cancel_futures=kind is not None)


def _on_ray(threads: int | None, function: Callable[..., T], args: Iterable[object], kwargs: Mapping[str, object]) -> T:
    _set_threads(threads)
    return function(*args, **kwargs)
