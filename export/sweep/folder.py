"""The folder of a sweep: one run at a time, one model and one data set; what in it is damaged is named. No torch."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from export.sweep import pictures
from export.sweep.answers import FOLDER, SAMPLES, read_answers, read_samples
from export.sweep.table import FILE, Table, read_table
from importance.atomic import sweep_staged
from importance.choose import SCORES
from importance.scores import read_scores
from transform.disk import full_disk
from transform.errors import KnobcastError, WriteError

LOCK = ".sweep.lock"


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """`directory` exists inside, is this run's alone, and is rid of what killed ones were writing; raises WriteError
    where another sweep writes it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full_disk(directory, 4096, "are needed") from error
        raise WriteError(
            f"{directory} must be a folder that can be written to ({error.strerror}). Choose another --out."
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WriteError(
                f"one sweep at a time writes {directory}, and another one does. Wait until it is done, or choose "
                "another --out."
            ) from error
        except OSError:  # a file system without locks
            pass
        for folder in (directory, directory / FOLDER, directory / pictures.FOLDER):
            sweep_staged(folder)
        yield
    finally:
        with suppress(OSError):
            os.close(handle)


def check_same(directory: Path, table: Table) -> tuple[bool, list[str]]:
    """(whether what lies in `directory` is known to be of this model, what should be said); raises WriteError for the
    folder of another model's sweep, of other data's, and for one that holds anything else."""
    if not directory.is_dir():
        return False, []
    if not (directory / FILE).is_file():
        found = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
        if found:
            raise WriteError(
                f"--out must be a new folder or one of a sweep, {directory} holds {', '.join(found[:5])} and no "
                f"{FILE}. Choose another --out."
            )
        return False, []
    try:
        there = read_table(directory)
    except KnobcastError as error:
        return False, [f"{error} Its jobs are kept, the table and the graphs are made again."]
    pairs = [("model", there.source.digest, table.source.digest)]
    if there.data is not None and table.data is not None:
        pairs += [("data", there.data.digest, table.data.digest), ("grading", there.data.task, table.data.task)]
    for what, theirs, ours in pairs:
        if theirs != ours:
            raise WriteError(
                f"a sweep has one model and one data set, and {directory} is of another {what}: {theirs} there, {ours} "
                "here. Choose another --out."
            )
    again = f"leave {directory / FILE}, and come back with the next run that asks for them: nothing is measured twice."
    notes = []
    if there.data is not None and table.data is None:
        notes.append(f"this run has no --data: the accuracies {again}")
    if there.machine is not None and table.machine is None:
        notes.append(f"this run has --no-latency: the latencies {again}")
    return True, notes


def damaged_files(directory: Path) -> list[str]:
    """What lies beside a whole table and isn't as a sweep wrote it, by name: all of it is written again."""
    try:
        table = read_table(directory)
    except KnobcastError:
        return []
    found = []

    def look(name: str, read: Callable[[], object]) -> None:
        try:
            read()
        except KnobcastError:
            found.append(name)

    if (directory / SCORES).exists():
        look(SCORES, lambda: read_scores(directory / SCORES, table.source.layers))
    look(pictures.FILE, lambda: pictures.read_pictures(directory))
    answered = [point.name for point in table.points if point.quality is not None]
    if table.data is not None and answered:
        samples = table.data.samples
        look(SAMPLES, lambda: read_samples(directory))
        for name in answered:
            look(f"{FOLDER}/{name}.json", lambda: read_answers(directory, name, samples))  # noqa: B023 called at once
    return found
