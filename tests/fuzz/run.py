"""`make fuzz ARGS="--minutes 30 --seed 7"`: changed input for every reader of files that may come from anywhere.

A fault is an exception that is no refusal, or a run of more than five seconds of processor time or 500 MB of memory.
Each kind of fault, by its type and the place it comes from, is kept once: `python -m tests.fuzz.run --replay FILE` runs
it again.
"""

import argparse
import json
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from time import process_time
from typing import Any

from tests.fuzz.target import Target
from tests.fuzz.targets import targets
from transform.errors import KnobcastError
from transform.molmoe.preprocessing import ImageError
from transform.molmoe.tiling import BudgetError

REFUSALS = (KnobcastError, BudgetError, ImageError)
LONGEST = 5.0  # seconds of processor time
RESIDENT = 500 << 20  # bytes of memory beyond what was taken before a target's first run
MEMORY = 3 << 30  # bytes beyond what is mapped at the start
ROOT = Path(__file__).parents[2]


class TooLongError(BaseException):
    """No Exception: nothing may take it for one of its own."""


@dataclass
class Found:
    """What one target's runs came to."""

    runs: int = 0
    accepted: int = 0
    refusal: str = ""  # the last one
    faults: dict[str, bytes] = field(default_factory=dict)  # kind -> the first input that shows it
    before: int = field(default_factory=lambda: peak())  # bytes of memory at most, so far


def fuzz(target: Target, seconds: float, seed: int, longest: float = LONGEST) -> Found:
    """Run changed input for `seconds` of processor time; the valid input first, which must be accepted."""
    found = Found()
    for data in target.valid:
        attempt(target, data, found, longest)
        if found.accepted != found.runs:
            reasons = found.refusal, *found.faults
            raise ValueError(f"{target.name}: its valid input must be accepted: {reasons}")
    end = process_time() + seconds
    while process_time() < end:
        rng = Random(f"{seed} {target.name} {found.runs}")
        attempt(target, target.mutate(rng, rng.choice(target.valid)), found, longest)
    return found


def attempt(target: Target, data: bytes, found: Found, longest: float = LONGEST) -> None:
    """One run, counted."""
    found.runs += 1
    try:
        with limited(longest):
            target.run(data)
        found.accepted += 1
    except REFUSALS as error:
        found.refusal = str(error)
    except (Exception, TooLongError) as error:
        found.faults.setdefault(kind_of(error), data)
    if peak() - found.before > RESIDENT:
        found.faults.setdefault("more than the memory", data)
        found.before = peak()


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TooLongError after `seconds` of this process's processor time."""

    def stop(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def kind_of(error: BaseException) -> str:
    """Type and place: the last line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename.startswith(f"{ROOT}/") and f.filename != __file__]
    own = [f for f in own if "site-packages" not in f.filename]
    place = f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno}" if own else "elsewhere"
    return f"{'more than the time' if isinstance(error, TooLongError) else type(error).__name__} at {place}"


def save(folder: Path, target: Target, kind: str, data: bytes) -> Path:
    """Keep an input: a line that names its target and fault, then the bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target.name.replace(' ', '-')}-{sha256(data).hexdigest()[:12]}"
    path.write_bytes(json.dumps({"target": target.name, "fault": kind}).encode() + b"\n" + data)
    return path


def replay(path: Path, known: Sequence[Target]) -> str | None:
    """Run a kept input again; its fault, or None where there is none any more."""
    head, _, data = path.read_bytes().partition(b"\n")
    target = next(target for target in known if target.name == json.loads(head)["target"])
    found = Found()
    attempt(target, data, found)
    return next(iter(found.faults), None)


def main(arguments: Sequence[str] | None = None) -> int:
    """All targets, or one kept input; 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="of processor time, shared out among the targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="targets whose name begins so")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"), help="folder of inputs that show a fault")
    parser.add_argument("--replay", type=Path, help="an input that was kept")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        known = targets(Path(folder))
        limit_memory()
        if given.replay is not None:
            fault = replay(given.replay, known)
            print(fault or "no fault")
            return int(fault is not None)
        chosen = [target for target in known if target.name.startswith(given.only or "")]
        faults = 0
        print(f"seed {given.seed}\n{'target':20}{'runs':>10}{'accepted':>10}{'faults':>8}", flush=True)
        for target in chosen:
            found = fuzz(target, 60 * given.minutes / len(chosen), given.seed)
            print(f"{target.name:20}{found.runs:>10,}{found.accepted:>10,}{len(found.faults):>8}", flush=True)
            for kind, data in found.faults.items():
                print(f"  {kind}: {save(given.keep, target, kind, data)}", flush=True)
            faults += len(found.faults)
    if faults:
        print(f"{faults} faults; again with: python -m tests.fuzz.run --replay FILE", file=sys.stderr)
    return int(faults > 0)


def peak() -> int:
    """The most bytes of memory that this process had at a time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def limit_memory() -> None:
    """Beyond MEMORY more than is mapped now, allocations fail: a fault, not the end of the machine."""
    mapped = Path("/proc/self/statm")
    if mapped.exists():
        now = int(mapped.read_text().split()[0]) * resource.getpagesize()
        hard: Any = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))


if __name__ == "__main__":
    sys.exit(main())
