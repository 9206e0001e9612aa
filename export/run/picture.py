"""A picture as a variant's graphs take it, cut by `preprocess.onnx` or by the code that it repeats. No torch.

n crops besides the global view, t kept image features, T ids of the picture.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from export.run.io_file import Policy
from export.run.session import RunError
from transform.arrays import Array
from transform.errors import VerificationError
from transform.molmoe.pictures import ImageInput, open_image
from transform.molmoe.preprocessing import fitting_tiling, preprocess
from transform.molmoe.tiling import PATCH, PATCHES, TOKENS_PER_CROP, Tiling, image_tokens, patch_tokens

GRAPH = "preprocess.onnx"
WAYS = ("graph", "python")


class Crops(Protocol):
    """What a vision graph of fixed sizes takes."""

    @property
    def tiling(self) -> Tiling:
        """Rows and columns."""

    @property
    def images(self) -> Array:
        """float32 [n+1, 576, 588]."""

    @property
    def image_masks(self) -> Array:
        """float32 [n+1, 576]."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture for any graphs."""

    tiling: Tiling
    images: Array  # float32 [n+1, 576, 588]
    image_masks: Array  # float32 [n+1, 576]
    feature_index: Array  # int64 [t]
    ids: Array  # int64 [T]


def choose_way(directory: Path, asked: str | None) -> str:
    """What cuts a variant's pictures: what is asked for, or else the graph where there is one. Raises RunError."""
    if asked not in (None, *WAYS):
        raise RunError(f"Images are cut by {' or '.join(WAYS)}, got {asked!r}. Choose one of them.")
    there = (directory / GRAPH).is_file()
    if asked == "graph" and not there:
        raise RunError(
            f"What cuts images must be there: {directory} has no {GRAPH}, as text-only variants and those of older "
            "versions. Export it again, or take python."
        )
    return asked or ("graph" if there else "python")


def cut_by_python(image: ImageInput, policy: Policy, roles: list[int]) -> Picture:
    """By `preprocess`, with the ids of start, end, patch and column; raises ImageError."""
    cut = preprocess(image, **policy)
    ids = cut.image_tokens(*roles).astype(np.int64)
    return Picture(cut.tiling, cut.images, cut.image_masks, cut.feature_index, ids)


def cut_by_graph(session: Any, image: ImageInput, policy: Policy) -> Picture:
    """By a session of `preprocess.onnx`; raises ImageError for the same pictures, before anything is computed, and
    VerificationError where the graph gives other sizes than the policy."""
    pixels = open_image(image)
    rows, columns = fitting_tiling(pixels, **policy)
    crops, patches = rows * columns + 1, PATCHES**2
    wanted = {
        "images": (crops, patches, 3 * PATCH**2),
        "image_masks": (crops, patches),
        "feature_index": (patch_tokens(rows, columns),),
        "image_ids": (image_tokens(rows, columns),),
    }
    try:
        found = dict(zip(wanted, session.run(list(wanted), {"image": pixels}), strict=True))
    except Exception as error:  # onnxruntime has a dozen exception types without a common base
        raise _refused(f"it fails on {pixels.shape[1]}×{pixels.shape[0]}: {str(error)[:200]}") from error
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise _refused(f"{name} must be {list(shape)}, it is {list(found[name].shape)}")
    index, most = found["feature_index"], crops * TOKENS_PER_CROP
    if index.min() < 0 or index.max() >= most:
        raise _refused(f"feature_index must be from 0 to {most - 1}, it is from {index.min()} to {index.max()}")
    return Picture((rows, columns), *found.values())


def _refused(why: str) -> VerificationError:
    return VerificationError(f"{GRAPH} must cut pictures as io.json says: {why}. Export the variant again.")
