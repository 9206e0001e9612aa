"""The folder of finished jobs while a run uses it: several may, and the last one to finish removes it."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transform.errors import WriteError


@contextmanager
def job_folder(store: Path, kept: bool, taken: Callable[[], bool]) -> Iterator[None]:
    """`store` exists inside. It goes when the block ends well, or with a WriteError because another run has
    written the result (`taken`), unless it is to be `kept` or another run uses it. An empty one goes in any case."""
    handle, new = _hold(store)
    done = False
    try:
        yield
        done = True
    except WriteError:
        done = taken()
        raise
    finally:
        if handle is not None:
            with suppress(OSError):
                if done and not kept:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused where another run holds it
                    shutil.rmtree(store, ignore_errors=True)
                elif new:
                    store.rmdir()  # refused where anything is in it
            os.close(handle)


def _hold(store: Path) -> tuple[int | None, bool]:
    """(the folder, open and locked among others, whether it is new); None: it can't be, and its first job says why."""
    new = not store.exists()
    while True:
        try:
            store.mkdir(parents=True, exist_ok=True)
            handle = os.open(store, os.O_RDONLY)
        except OSError:
            return None, False
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH)
        with suppress(OSError):
            if os.path.samestat(store.stat(), os.fstat(handle)):
                return handle, new
        os.close(handle)  # removed by another run before it was locked
