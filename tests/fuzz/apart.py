"""A target's runs in a process of their own: a crash of native code is a fault, and so is native code without end.

What a process had reached, and the input that it was given, stand in memory that outlives it; the next one goes on
behind it.
"""

import mmap
import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic

from tests.fuzz.attempts import LONGEST, Found, Limit, fuzz, peak
from tests.fuzz.target import Target

MEMORY = 3 << 30  # bytes beyond what is mapped at the start
STUCK = 12 * LONGEST  # seconds of processor time without a run that ended
NOTED = 16 << 20  # bytes of the longest input that can be noted
HEAD = 24
EVERY = 60.0  # seconds between reports


class Note:
    """Shared: how many runs began and were accepted, and the input of the run that goes on."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, HEAD + NOTED)

    def write(self, found: Found, data: bytes) -> None:
        """Before each run."""
        numbers = found.runs, found.accepted, len(data)
        self._memory[:HEAD] = b"".join(value.to_bytes(8, "little") for value in numbers)
        self._memory[HEAD : HEAD + len(data)] = data

    def read(self) -> tuple[int, int, bytes]:
        """Runs that ended, those accepted of them, the input of the run behind them."""
        runs, accepted, size = (int.from_bytes(self._memory[at : at + 8], "little") for at in (0, 8, 16))
        return runs, accepted, self._memory[HEAD : HEAD + size]


Report = Callable[[int, int], None]  # runs that ended, those accepted of them


def fuzz_apart(target: Target, limit: Limit, seed: int, report: Report = lambda runs, accepted: None) -> Found:
    """As `fuzz`, whatever becomes of the process that runs it. A crash ends a target that is limited by time."""
    found, note = Found(), Note()
    context = multiprocessing.get_context("fork")  # a target can't be pickled, and is made once for all
    while True:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(target, limit, seed, found, note, theirs))
        process.start()
        theirs.close()
        stuck = False
        for answer in _answers(process.pid or 0, ours, note, report):
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, Found):
                found = answer
            stuck = answer is None
            if stuck:
                process.kill()
        process.join()
        if process.exitcode == 0:
            return found
        runs, accepted, data = note.read()
        code = process.exitcode or 0
        how = "no end" if stuck else f"crash by signal {-code}" if code < 0 else f"end with code {code}"
        found.faults.setdefault(how, data)
        found.runs, found.accepted = runs + 1, accepted
        if found.runs >= limit.runs or limit.seconds < float("inf"):
            return found


def _run(target: Target, limit: Limit, seed: int, found: Found, note: Note, answers: Connection) -> None:
    """Send what was found whenever a fault is new, and at the end; or why there is nothing to be found."""
    limit_memory()
    with Path(os.devnull).open("w") as nowhere:  # what libraries say of every input
        os.dup2(nowhere.fileno(), 2)
    found.before = peak()
    known, parent = len(found.faults), os.getppid()

    def before(found: Found, data: bytes) -> None:
        nonlocal known
        if os.getppid() != parent:  # nobody waits any more
            os._exit(1)
        note.write(found, data)
        if len(found.faults) > known:
            known = len(found.faults)
            answers.send(found)

    try:
        answers.send(fuzz(target, limit, seed, found, before=before))
    except Exception as error:  # the fuzzer's own: the parent raises it
        answers.send(error)


def _answers(pid: int, answers: Connection, note: Note, report: Report) -> Iterator[object]:
    """What a process sends until it has ended; None where it computes and no run of it ends."""
    runs, begun, told = -1, 0.0, monotonic()
    while True:
        if answers.poll(0.2):
            try:
                yield answers.recv()
            except EOFError:
                return
            continue
        now, accepted, _ = note.read()
        used = _processor_seconds(pid)
        if now != runs:
            runs, begun = now, used
        elif used - begun > STUCK:
            yield None
        if monotonic() - told > EVERY:
            told = monotonic()
            report(now, accepted)


def _processor_seconds(pid: int) -> float:
    """Where Linux says it; else the time that passed."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return monotonic()
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def limit_memory() -> None:
    """Beyond MEMORY more than is mapped now, allocations fail: a fault, not the end of the machine."""
    mapped = Path("/proc/self/statm")
    if mapped.exists():
        now = int(mapped.read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
