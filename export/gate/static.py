"""The static graphs against the golden outputs of PyTorch: every prompt length, every tiling, the cache used again.

The cache is filled with a large number first, so that a slot which is read before it was written shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.gate.checking import checking_static
from export.gate.golden import Differences, compare, record, torch_image
from export.gate.image_probe import ImageProbe, image_probe
from export.gate.probe import DECODE, MarginWatch
from export.graph.static import write_decoders
from export.run.io_file import form_in, read_io
from export.run.static import StaticGraphs
from export.run.static_plan import Prefill, StaticPlan, read_static
from transform.architectures.graph_facts import Routing
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.molmoe import tiling
from transform.molmoe.preprocessing import Preprocessed, index_map

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = ".block-"  # of the decoders that are written for the gate alone
LEFTOVER = 1e4  # what stands in unused slots; float16 holds it
# Of hundreds of tokens in two programs: wider than for the text probe, for the differences grow with the sum's length.
IMAGE_MARGIN = 1e-6


def check_static_text(graphs: StaticGraphs, golden: dict[str, Array], tolerance: float) -> Differences:
    """Prefill in two calls by each of the graphs, then decode steps, against golden logits of the whole sequence.

    The second call is what the rest of a long prompt gets: its tokens come behind others.

    Returns {graph file: largest difference of its logits, steps included}.
    """
    ids, theirs = golden["ids"][:, : graphs.static.cache], golden["logits"][0]
    prompt = ids.shape[1] - DECODE
    half = prompt // 2
    found = {}
    for prefill in graphs.static.prefills:
        graphs.fill_cache(LEFTOVER)
        ours = [graphs.prefill(ids[:, :half], tiling=prefill.tiling)]
        ours.append(graphs.extend(ids[:, half:prompt], prefill.tiling))
        ours += [graphs.decode(int(token)) for token in ids[0, prompt:]]
        name = prefill.file("prefill")
        found[name] = compare(
            np.stack(ours), theirs[[half - 1, *range(prompt - 1, ids.shape[1])]], tolerance, f"{name} and decode.onnx"
        )
    return found


@dataclass(frozen=True)
class StaticImage:
    """One tiling's picture prompt as the model and as the static graphs take it."""

    prefill: Prefill
    probe: ImageProbe

    @property
    def cut(self) -> Preprocessed:
        """For `StaticGraphs`."""
        assert self.prefill.tiling is not None
        images, masks = self.probe.images[0], self.probe.image_masks[0]
        canvas = tiling.tiling_to_resolution(self.prefill.tiling)
        return Preprocessed(self.prefill.tiling, canvas, images, masks, index_map(self.prefill.tiling))


def static_images(
    static: StaticPlan, checkpoint: Checkpoint, directory: Path, vision: Mapping[str, object], seed: int
) -> list[StaticImage]:
    """A picture prompt for every tiling: the drawn picture in the shape that the policy gives this tiling to."""
    found = []
    for prefill in static.prefills:
        if prefill.tiling is not None:
            rows, columns = prefill.tiling
            wide, high = (columns, rows) if vision["rule"] == "linear" else (2 * columns + 1, 2 * rows + 1)
            probe = image_probe(checkpoint, directory, vision, seed, (40 * wide, 40 * high))
            found.append(StaticImage(prefill, probe))
    return found


def check_static_images(
    graphs: StaticGraphs, model: "PreTrainedModel", images: list[StaticImage], tolerance: float, routing: Routing
) -> dict[str, float | None]:
    """A picture prompt of every tiling against PyTorch: embeddings, and the last logits where every expert choice of
    its hundreds of tokens is decidable (None where not)."""
    found: dict[str, float | None] = {}
    for image in images:
        with MarginWatch(model, routing) as watch:
            rows, embeddings, logits = torch_image(model, image.probe)
        ids, cut = image.probe.input_ids, image.cut
        files = " and ".join(image.prefill.file(kind) for kind in ("vision", "embedding"))
        ours = graphs.embeddings(ids, cut)[0][rows]
        found[image.prefill.file("vision")] = compare(ours, embeddings, tolerance, files)
        name, difference = image.prefill.file("prefill"), None
        if watch.smallest >= IMAGE_MARGIN:
            graphs.fill_cache(LEFTOVER)
            difference = compare(graphs.prefill(ids, cut)[None], logits, tolerance, f"{name}, a picture prompt")
        found[f"{name}, picture"] = difference
    return found


def verify_static(
    model: "PreTrainedModel",
    checkpoint: Checkpoint,
    directory: Path,
    golden: dict[str, Array],
    seed: int,
    tolerance: float,
) -> dict[str, float | None]:
    """All static graphs of a variant directory against its PyTorch model; raises VerificationError."""
    graphs = checking_static(directory)
    found: dict[str, float | None] = {"relative_tolerance": tolerance, **check_static_text(graphs, golden, tolerance)}
    if graphs.static.modality.sees_images:
        images = static_images(graphs.static, checkpoint, directory, graphs.io["vision"], seed)
        found |= check_static_images(graphs, model, images, tolerance, checkpoint.graph.routing)
    return found


def verify_static_block(
    model: "PreTrainedModel", view: Checkpoint, directory: Path, ids: Array, pictures: bool, tolerance: float
) -> Differences:
    """The same for one block of a variant, `view`, whose decoders are written for this alone; `model` is that block."""
    io = read_io(directory)
    static = read_static(io)
    assert static is not None
    files = write_decoders(view, directory, static, form_in(io), PREFIX)
    try:
        graphs = checking_static(directory, PREFIX)
        found = check_static_text(graphs, record(model, ids, None), tolerance)
        if pictures and static.modality.sees_images:
            images = static_images(static, view, directory, io["vision"], 0)
            measured = check_static_images(graphs, model, images, tolerance, view.graph.routing)
            found |= {name: value for name, value in measured.items() if value is not None}
    finally:
        for file in files:
            file.unlink()
    return found
