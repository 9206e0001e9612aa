"""`make fuzz ARGS="--minutes 30 --seed 7"`: changed input for every reader of files that may come from anywhere.

A fault is an exception that is no refusal, a crash, or a run of more than five seconds of processor time or 500 MB of
memory. Each kind of fault, by its type and the place it comes from, is kept once: `python -m tests.fuzz.run --replay
FILE` runs it again.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

import transformers

from tests.fuzz.apart import fuzz_apart, limit_memory
from tests.fuzz.attempts import Found, Limit, attempt
from tests.fuzz.target import Target
from tests.fuzz.targets import targets


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


def chosen(known: Sequence[Target], only: Sequence[str]) -> list[Target]:
    """Those whose name begins with a word, or is one that ends in `$`, in the words' order; all without any word."""
    words = [word for text in only for word in text.split(",") if word]
    found = {t.name: t for word in words for t in known if f"{t.name}$".startswith(word)}
    return list(found.values()) if words else list(known)


def main(arguments: Sequence[str] | None = None) -> int:
    """All targets, or one kept input; 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="of processor time, shared out among the targets; default 1")
    parser.add_argument("--runs", type=int, help="of each target, however long they take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="targets whose name begins so: a,b or given again")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"), help="folder of inputs that show a fault")
    parser.add_argument("--replay", type=Path, help="an input that was kept")
    given = parser.parse_args(arguments)
    if given.runs is not None and given.minutes is not None:
        parser.error("--runs and --minutes are two limits: give one")
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        known = targets(Path(folder))
        if given.replay is not None:
            limit_memory()
            fault = replay(given.replay, known)
            print(fault or "no fault")
            return int(fault is not None)
        some = chosen(known, given.only)
        if not some:
            parser.error(f"no target begins so; there are: {', '.join(target.name for target in known)}")
        minutes = 1.0 if given.minutes is None else given.minutes
        limit = Limit(seconds=60 * minutes / len(some)) if given.runs is None else Limit(runs=given.runs)
        faults = _all(some, limit, given.seed, given.keep)
    if faults:
        print(f"{faults} faults; again with: python -m tests.fuzz.run --replay FILE", file=sys.stderr)
    return int(faults > 0)


def _all(some: Sequence[Target], limit: Limit, seed: int, keep: Path) -> int:
    """A line for each target as it ends; how many kinds of faults there were."""
    faults = 0
    print(f"seed {seed}\n{'target':28}{'runs':>10}{'accepted':>10}{'faults':>8}{'MB':>6}", flush=True)
    for target in some:
        found = fuzz_apart(target, limit, seed, partial(_told, target.name))
        counts = f"{found.runs:>10,}{found.accepted:>10,}{len(found.faults):>8}{found.memory / 1e6:>6.0f}"
        print(f"{target.name:28}{counts}", flush=True)
        for kind, data in found.faults.items():
            print(f"  {kind}: {save(keep, target, kind, data)}", flush=True)
        faults += len(found.faults)
    return faults


def _told(name: str, runs: int, accepted: int) -> None:
    """A target that takes long: how far it is."""
    print(f"  {name}: {runs:,} runs, {accepted:,} accepted so far", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
