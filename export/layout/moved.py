"""A graph in another place, with one plain file of weights beside it that holds the byte ranges the graph reads.

Requires a variant's graph with its weights beside it. The graph is the same but for location and offset of its
weights. Ranges that touch are one run; a run keeps its place within a page, so that file systems that share blocks
share them. What the graph doesn't read isn't copied.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.run.external import External, check_external, place_of
from export.run.graph_facts import Facts, read_facts
from transform.checkpoint import Checkpoint
from transform.copying import RangeCopier
from transform.errors import VerificationError
from transform.forms import Form
from transform.progress import Progress

PAGE = 4096
SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """Bytes of one weight file and where they go."""

    file: str
    start: int
    length: int
    at: int


@dataclass(frozen=True)
class Moved:
    """A graph to be carried: where to, relative to the layout, and its weights as runs."""

    source: Path
    target: str
    facts: Facts
    runs: tuple[Run, ...]

    @property
    def data(self) -> str:
        """The weight file's name beside the graph; transformers.js asks for this one by itself."""
        return Path(self.target).name + "_data"

    @property
    def nbytes(self) -> int:
        """Bytes of weights that are copied or shared."""
        return sum(run.length for run in self.runs)

    def as_dict(self) -> dict[str, object]:
        """For `--json` and the manifest."""
        return {"graph": self.target, "from": self.source.name, "weight_bytes": self.nbytes}

    def place(self, file: str, offset: int) -> int:
        """Where a byte of a weight file went."""
        for run in self.runs:
            if run.file == file and run.start <= offset < run.start + run.length:
                return run.at + offset - run.start
        raise VerificationError(f"{self.source.name}: byte {offset:,} of {file} is in no run. Please report this.")


@dataclass(frozen=True)
class Layout:
    """What will be written for one runtime: printable, and checked against the variant's files."""

    runtime: str
    variant: Checkpoint
    member: str | None
    form: Form
    provider: str
    options: Mapping[str, Mapping[str, str]]  # of the provider and those behind it
    moved: tuple[Moved, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of weights, all graphs together."""
        return sum(moved.nbytes for moved in self.moved)

    def as_dict(self) -> dict[str, object]:
        """For `--json` and the manifest: no absolute path."""
        return {
            "schema": SCHEMA,
            "layout": self.runtime,
            "variant": self.variant.path.name,
            "member": self.member,
            "form": self.form.name,
            "provider": self.provider,
            "graphs": [moved.as_dict() for moved in self.moved],
            "weight_bytes": self.nbytes,
        }


def plan_move(source: Path, target: str) -> Moved:
    """What a graph needs, from its own bytes: no weight is read."""
    facts = read_facts(source)
    joined: list[tuple[str, int, int]] = []
    for file, start, length in sorted(check_external(source.name, facts.external, source.parent)):
        if length == 0:
            continue
        if joined and joined[-1][0] == file and start <= joined[-1][1] + joined[-1][2]:
            known = joined.pop()
            length = max(known[1] + known[2], start + length) - known[1]
            start = known[1]
        joined.append((file, start, length))
    runs, at = [], 0
    for file, start, length in joined:
        at += (start - at) % PAGE
        runs.append(Run(file, start, length, at))
        at += length
    return Moved(source, target, facts, tuple(runs))


def write_move(moved: Moved, stage: Path, progress: Progress) -> dict[str, int]:
    """Write graph and weights below `stage`; returns bytes by the way they went (reflink, copy_file_range, …)."""
    import onnx

    from export.files.integrity import external_tensors

    path = stage / moved.target
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        model = onnx.load(moved.source, load_external_data=False)
    except Exception as error:  # protobuf's own exception type depends on its implementation
        raise VerificationError(f"{moved.source.name}: not an ONNX file ({error}). Export it again.") from error
    tensors = list(external_tensors(model.graph))
    if len(tensors) != len(moved.facts.external):
        raise VerificationError(
            f"{moved.source.name} must keep its weights in its graph alone: {len(moved.facts.external)} tensors lie in "
            f"other files, {len(tensors)} of them can be carried elsewhere. Export the variant again."
        )
    for tensor in tensors:
        entries = tuple((item.key, item.value) for item in tensor.external_data)
        place = place_of(moved.source.name, External(tensor.name, tensor.data_type, tuple(tensor.dims), entries))
        offset = moved.place(place.location, place.offset) if place.length else place.offset
        del tensor.external_data[:]
        for key, value in (("location", moved.data), ("offset", offset), ("length", place.length)):
            tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString(deterministic=True))
    return _write_data(moved, path.parent / moved.data, progress)


def _write_data(moved: Moved, path: Path, progress: Progress) -> dict[str, int]:
    ways: dict[str, int] = {}
    if not moved.runs:
        return ways
    with path.open("wb") as target:
        for file in dict.fromkeys(run.file for run in moved.runs):
            with (moved.source.parent / file).open("rb") as source:
                copier = RangeCopier(source.fileno(), target.fileno(), progress)
                for run in moved.runs:
                    if run.file == file:
                        copier.copy(run.start, run.at, run.length)
            for way, count in copier.ways.items():
                ways[way] = ways.get(way, 0) + count
        os.ftruncate(target.fileno(), moved.runs[-1].at + moved.runs[-1].length)
    return ways
