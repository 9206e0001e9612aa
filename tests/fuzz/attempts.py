"""One target's runs: changed input by a seed, what is no refusal told from what is one.

A fault is an exception that is no refusal, or a run of more than five seconds of processor time or 500 MB of memory.
"""

import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import process_time

from tests.fuzz.target import Target
from transform.errors import KnobcastError
from transform.molmoe.preprocessing import ImageError
from transform.molmoe.tiling import BudgetError

REFUSALS = (KnobcastError, BudgetError, ImageError)
LONGEST = 5.0  # seconds of processor time
RESIDENT = 500 << 20  # bytes of memory beyond what was taken before a target's first run
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
    memory: int = 0  # bytes beyond that, at most


@dataclass(frozen=True)
class Limit:
    """When a target has run enough: whichever comes first."""

    seconds: float = float("inf")  # of processor time
    runs: float = float("inf")  # valid inputs among them

    def reached(self, found: Found, end: float) -> bool:
        return found.runs >= self.runs or process_time() >= end


def fuzz(
    target: Target, limit: Limit, seed: int, found: Found, longest: float = LONGEST,
    before: Callable[[Found, bytes], None] = lambda found, data: None,
) -> Found:  # fmt: skip
    """Add runs of changed input to `found`; the valid input first, which must be accepted.

    Input is a function of seed, name and number: whoever goes on with a `found` gets what one long run would have.
    `before` is told of every input before it is run.
    """
    end = process_time() + limit.seconds
    for data in target.valid[found.runs :]:
        before(found, data)
        attempt(target, data, found, longest)
        if found.accepted != found.runs:
            reasons = found.refusal, *found.faults
            raise ValueError(f"{target.name}: its valid input must be accepted: {reasons}")
    while not limit.reached(found, end):
        rng = Random(f"{seed} {target.name} {found.runs}")
        data = target.mutate(rng, rng.choice(target.valid))
        before(found, data)
        attempt(target, data, found, longest)
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
    taken = peak() - found.before
    found.memory = max(found.memory, taken)
    if taken > RESIDENT:
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


def peak() -> int:
    """The most bytes of memory that this process had at a time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
