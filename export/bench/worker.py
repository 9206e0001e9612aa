"""One contestant in a process of its own: `python -m export.bench.worker JOB`, then a line per request on stdin.

prepare -> {"seconds"}; load -> {"seconds", "memory_before", "memory"}; run -> {"vision", "prefill", "steps", "tokens",
"memory"}. Times are seconds, `vision` is null where the contestant sees no picture. Anything else that libraries print
goes to stderr.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from time import perf_counter

from export.bench.contestants import HOME
from export.bench.job import BenchJob, Engine
from export.bench.machine import device_memory, process_memory
from export.bench.workload import Workload

LONGEST = 600  # characters of an error


def timed_run(engine: Engine, workload: Workload) -> dict[str, object]:
    """One prompt: the picture, the prefill that gives the first token, and the N - 1 steps that give the others."""
    engine.start()
    vision = None
    if workload.picture and engine.sees:
        began = perf_counter()
        engine.see()
        vision = perf_counter() - began
    began = perf_counter()
    tokens = [engine.prefill()]
    prefill = perf_counter() - began
    steps = []
    for _ in range(workload.new_tokens - 1):  # end tokens don't end it: every contestant makes as many
        began = perf_counter()
        tokens.append(engine.step(tokens[-1]))
        steps.append(perf_counter() - began)
    return {"vision": vision, "prefill": prefill, "steps": steps, "tokens": tokens}


def answer(what: str, engine: Engine, workload: Workload, gpu: bool) -> dict[str, object]:
    """What one request gives."""
    if what == "run":
        found = timed_run(engine, workload)
    else:
        before = process_memory()
        began = perf_counter()
        getattr(engine, what)()
        found = {"seconds": perf_counter() - began, "memory_before": before}
    device = device_memory(os.getpid()) if gpu else None
    return {**found, "memory": {**process_memory(), "device_bytes": device}}


def requests() -> Iterator[str]:
    """Lines of stdin. When it ends the process does, whatever it is doing: nobody waits for the answer any more."""
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line.strip())
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield lines.get()


def main() -> None:
    """Answer until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = BenchJob.from_json(sys.argv[1])
    workload = Workload.load(Path(job.workload))
    engine: Engine | None = None
    for what in requests():
        try:
            # imports come before the clock and the first look at memory: a runtime's own size isn't the model's
            engine = engine or import_module(HOME[job.name]).Engine(job, workload)
            found = answer(what, engine, workload, job.provider != "cpu")
        except Exception as error:  # whatever a runtime raises is the contestant's reason
            text = str(error).strip().splitlines() or [""]
            found = {"error": f"{type(error).__name__}: {text[0]}"[:LONGEST]}
        print(json.dumps(found), file=out, flush=True)


if __name__ == "__main__":
    main()
