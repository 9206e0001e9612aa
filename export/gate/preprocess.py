"""`preprocess.onnx` against the code that cuts pictures for PyTorch: integers and masks exactly, pixels nearly."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from export.gate.picture import drawn_picture
from export.run.graphs import Graphs
from export.run.io_file import ROLES, Policy, policy_in
from export.run.picture import GRAPH, cut_by_graph, cut_by_python
from transform.arrays import Array
from transform.errors import VerificationError
from transform.molmoe.preprocessing import choose_tiling

TOLERANCE = 1e-5  # absolute, of values from -1.8 to 2.2: 1.6e-6 was seen
SIZES = ((40, 1200), (1200, 40), (5, 7), (1536, 2048), (1, 1))  # wide, tall, tiny, huge, one pixel
HEIGHT, WIDTHS = 150, range(32, 600)  # among these the tiling changes, if a policy has several
ROWS = 32  # golden patches: enough to notice, few enough to stay small
PREFIX = "preprocess."


def check_preprocess(graphs: Graphs) -> dict[str, float]:
    """Cut pictures of noise both ways, by the variant's own policy -> how many, and the largest difference.

    Raises VerificationError where they differ.
    """
    policy, largest = policy_in(graphs.io["vision"]), 0.0
    sizes = (*SIZES, *_turning(policy))
    for seed, size in enumerate(sizes):
        noise = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (*size, 3), np.uint8)
        largest = max(largest, _difference(graphs, noise))
    return {"tolerance": TOLERANCE, "pictures": len(sizes), "largest_difference": largest}


def record_picture(graphs: Graphs) -> dict[str, Array]:
    """For the golden file: the drawn picture and what the Python code makes of it, of its patches a few."""
    drawn = drawn_picture()
    cut = cut_by_python(drawn, policy_in(graphs.io["vision"]), _roles(graphs))
    patches = cut.images.reshape(-1, cut.images.shape[-1])
    rows = np.unique(np.linspace(0, len(patches) - 1, ROWS).astype(np.int64))
    named: dict[str, Array] = {"image": drawn, "rows": rows, "images": patches[rows], "image_masks": cut.image_masks}
    named |= {"feature_index": cut.feature_index, "image_ids": cut.ids}
    return {PREFIX + name: value for name, value in named.items()}


def check_golden_picture(graphs: Graphs, golden: dict[str, Array]) -> dict[str, float]:
    """The graph against the recorded picture; raises VerificationError."""
    cut = cut_by_graph(graphs.preprocess, golden[PREFIX + "image"], policy_in(graphs.io["vision"]))
    patches, rows = cut.images.reshape(-1, cut.images.shape[-1]), golden[PREFIX + "rows"]
    theirs = [golden[PREFIX + name] for name in ("image_masks", "feature_index", "image_ids")]
    _check_equal([cut.image_masks, cut.feature_index, cut.ids], theirs)  # and so rows, which masks bound, exist
    return {"images": _close(patches[rows], golden[PREFIX + "images"])}


def has_preprocess(directory: Path) -> bool:
    """Whether a variant has the graph: text-only ones and those of older versions don't."""
    return (directory / GRAPH).is_file()


def _difference(graphs: Graphs, image: Array) -> float:
    policy = policy_in(graphs.io["vision"])
    ours, theirs = cut_by_graph(graphs.preprocess, image, policy), cut_by_python(image, policy, _roles(graphs))
    _check_equal(
        [ours.image_masks, ours.feature_index, ours.ids], [theirs.image_masks, theirs.feature_index, theirs.ids]
    )
    return _close(ours.images, theirs.images)


def _turning(policy: Policy) -> list[tuple[int, int]]:
    """Two pictures, one pixel apart, with two tilings; none where every picture gets the same one."""
    given = policy["tokens"], policy["max_crops"], policy["rule"]
    for narrow, wide in pairwise(WIDTHS):
        if choose_tiling(HEIGHT, narrow, *given) != choose_tiling(HEIGHT, wide, *given):
            return [(HEIGHT, narrow), (HEIGHT, wide)]
    return [(HEIGHT, HEIGHT)]


def _roles(graphs: Graphs) -> list[int]:
    return [graphs.io["special_ids"][role] for role in ROLES]


def _check_equal(ours: list[Array], theirs: list[Array]) -> None:
    for name, mine, other in zip(("image_masks", "feature_index", "image_ids"), ours, theirs, strict=True):
        if not np.array_equal(mine, other):
            raise _refused(f"{name} must be equal, they are not")


def _close(ours: Array, theirs: Array) -> float:
    difference = float(np.abs(ours - theirs).max())
    if not difference <= TOLERANCE:  # NaN isn't
        raise _refused(f"pixels may differ by {TOLERANCE}, the difference is {difference:.3g}")
    return difference


def _refused(why: str) -> VerificationError:
    return VerificationError(
        f"{GRAPH} must cut pictures as the variant's Python code does: {why}. Export the variant again."
    )
