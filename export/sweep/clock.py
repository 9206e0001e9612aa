"""One workload in one decoder, or the vision part alone, timed in a process: `python -m export.sweep.clock REQUEST`.

A request is one JSON object, so is what is printed; times are seconds. A decoder is asked one workload at one budget,
so that the peak of memory is its own; the vision part is asked all of them in rounds. No torch, no onnx.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from export.bench.machine import process_memory
from export.bench.workload import text_ids
from export.gate.picture import drawn_picture
from export.run.bound import Bound
from export.run.graphs import Graphs
from export.run.io_file import ROLES, Io, Policy
from export.run.picture import Picture, cut_by_graph, cut_by_python
from export.run.session import open_session
from transform.arrays import Array

LONGEST = 600  # characters of an error


@dataclass(frozen=True)
class Ask:
    """A workload at a budget. `policy`: how its picture is cut; `preprocess`: the graph that cuts it, where the vision
    part is timed."""

    name: str
    image: tuple[int, int] | None
    prompt: int
    new: int
    policy: Policy
    preprocess: str | None = None


@dataclass(frozen=True)
class Request:
    """`graph`: the decoder's file, which is asked one thing; None: the vision part alone."""

    directory: str
    graph: str | None
    provider: str
    threads: int
    runs: int
    asks: Sequence[Ask]

    def to_json(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Request":
        """What `to_json` gave."""
        raw = json.loads(text)
        asks = [Ask(**{**ask, "image": None if ask["image"] is None else tuple(ask["image"])}) for ask in raw["asks"]]
        return cls(**{**raw, "asks": asks})


def prompt_of(directory: Path, io: Io, ask: Ask) -> tuple[Array, Picture | None]:
    """(ids [1, P], the cut picture): the begin token and the picture's stream for image models, then text."""
    opening: list[int] = []
    picture = None
    if "vision" in io:
        opening = [io["special_ids"]["bos"]]
    if ask.image is not None:
        picture = cut_by_python(drawn_picture(*ask.image), ask.policy, [io["special_ids"][role] for role in ROLES])
        opening += picture.ids.tolist()
    words, _ = text_ids(directory, io, ask.prompt)
    return np.array([[*opening, *words]], np.int64), picture


def time_decoder(request: Request) -> dict[str, object]:
    """Prefill and steps of each run, and the peak of memory behind the first answer, which warms it up."""
    (ask,) = request.asks
    graphs = Graphs(Path(request.directory), request.provider, request.threads, str(request.graph))
    for kind in graphs.modality.graphs:
        getattr(graphs, kind)
    ids, picture = prompt_of(graphs.directory, graphs.io, ask)
    first, shown = Bound(graphs), Bound(graphs)
    if picture is not None:
        first.see(picture.images, picture.image_masks, picture.feature_index)
    shown.show(first)
    _generate(first, ids, ask.new)
    peak = process_memory()["peak_bytes"]
    runs = []
    for _ in range(request.runs):
        sequence = Bound(graphs)
        sequence.show(shown)
        runs.append(_generate(sequence, ids, ask.new))
    return {"peak_bytes": peak, "runs": runs}


def time_vision(request: Request) -> dict[str, object]:
    """Per ask with a picture: seconds of cutting it and of its features, together, in each run."""
    graphs = Graphs(Path(request.directory), request.provider, request.threads)
    roles = [graphs.io["special_ids"][role] for role in ROLES]
    seen = [ask for ask in request.asks if ask.image is not None]
    options = graphs.io.get("vision_session_options") or graphs.io["session_options"]
    paths = {ask.preprocess for ask in seen if ask.preprocess is not None}
    cutters = {path: open_session(Path(path), options, threads=request.threads) for path in paths}
    runs: dict[str, list[float]] = {ask.name: [] for ask in seen}
    for turn in range(1 + request.runs):
        for ask in seen:
            assert ask.image is not None
            pixels, sequence = drawn_picture(*ask.image), Bound(graphs)
            began = perf_counter()
            cut = (
                cut_by_python(pixels, ask.policy, roles)
                if ask.preprocess is None
                else cut_by_graph(cutters[ask.preprocess], pixels, ask.policy)
            )
            sequence.see(cut.images, cut.image_masks, cut.feature_index)
            if turn:
                runs[ask.name].append(perf_counter() - began)
    return {"asks": runs}


def _generate(sequence: Bound, ids: Array, new: int) -> dict[str, object]:
    began = perf_counter()
    token = int(sequence.prefill(ids).argmax())
    prefill, steps = perf_counter() - began, []
    for _ in range(new - 1):  # an end token doesn't end it: every setting makes as many
        began = perf_counter()
        token = int(sequence.decode(token).argmax())
        steps.append(perf_counter() - began)
    return {"prefill": prefill, "steps": steps}


def main(text: str) -> Mapping[str, object]:
    """What a request gives; an error as its first line."""
    request = Request.from_json(text)
    try:
        return time_vision(request) if request.graph is None else time_decoder(request)
    except Exception as error:  # whatever a runtime raises is the setting's reason
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0]}"[:LONGEST]}


def _end_with_parent() -> None:
    os.read(0, 1)  # nobody writes: it ends when whoever started us does
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print too
    print(json.dumps(main(sys.argv[1])), file=out, flush=True)
