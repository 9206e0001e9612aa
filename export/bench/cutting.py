"""The picture of `knobcast bench` as the graphs take it: cut as `knobcast run` cuts it, and timed. No torch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

from export.bench.record import Cut, spread
from export.gate.picture import drawn_picture
from export.run.graphs import Graphs
from export.run.io_file import ROLES, Io, policy_in
from export.run.picture import Picture, choose_way, cut_by_graph, cut_by_python
from transform.errors import KnobError
from transform.molmoe.pictures import open_image


@dataclass(frozen=True)
class Cutter:
    """`by`: what cuts it, "graph" or "python". `cut` does, from pixels on: opening the file isn't in it."""

    by: str
    cut: Callable[[], Picture]

    def timed(self, runs: int, warmup: int) -> Cut:
        """Seconds of `runs` cuts, after `warmup` that don't count."""
        seconds = []
        for run in range(-warmup, runs):
            began = perf_counter()
            self.cut()
            if run >= 0:
                seconds.append(perf_counter() - began)
        return {"by": self.by, "seconds": spread(seconds)}


def open_cutter(directory: Path, io: Io, image: Path | None, by: str | None = None, threads: int = 0) -> Cutter | None:
    """For a picture file, or the drawn one; None for text-only variants. Raises KnobError, RunError and ImageError."""
    by = choose_way(directory, by)
    if "vision" not in io:
        if image is not None:
            raise KnobError(f"--image is for image models, this is a text-only {io['model_type']}. Leave it out.")
        return None
    pixels, policy = open_image(drawn_picture() if image is None else image), policy_in(io["vision"])
    if by == "graph":
        return Cutter(by, partial(cut_by_graph, Graphs(directory, threads=threads).preprocess, pixels, policy))
    return Cutter(by, partial(cut_by_python, pixels, policy, [io["special_ids"][role] for role in ROLES]))
