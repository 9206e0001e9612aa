"""An image -> the crops, masks and index map that Molmo's vision tower takes; numpy and pillow, no torch.

The same code feeds PyTorch and ONNX. Letterboxing is what the model was trained with; `fill` (cover and cut) is an
option. Which tiling an image gets is `tiling.py`'s business, how pixels are weighted `resampling.py`'s.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .pictures import ImageError, ImageInput, open_image
from .resampling import resize as resample
from .tiling import (
    CROP,
    FEATURES,
    PATCH,
    PATCHES,
    STEP,
    TOKENS_PER_CROP,
    WINDOW,
    BudgetError,
    Tiling,
    crops_to_tiling,
    grid,
    image_tokens,
    parse_budget,
    select_tiling,
    tier_tiling,
    tiling_to_resolution,
    tokens_to_crops,
)

__all__ = ["ImageError", "Preprocessed", "open_image", "preprocess", "resize_for_target_vision_tokens"]

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
UNUSED = -100  # index of a feature which has no place in the sequence
RESIZES = ("pad", "fill")


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """One image, ready for the vision tower. n = rows * columns tiles; crop 0 is the global view."""

    tiling: Tiling
    canvas: tuple[int, int]  # height, width in pixels
    images: np.ndarray  # float32 [n+1, 576, 588]: patches row-major, each (dy, dx, rgb)
    image_masks: np.ndarray  # float32 [n+1, 576]: unpadded share of a patch; -1 in the last row
    image_input_idx: np.ndarray  # int32 [n+1, 144]: position in the image stream; BOS not counted; -100 = unused

    @property
    def feature_index(self) -> np.ndarray:
        """int64 [t]: which of the (n+1)*144 features are kept, in the order of the sequence."""
        return feature_index(self.image_input_idx)

    def image_tokens(self, start: int, end: int, patch: int, column: int) -> np.ndarray:
        """int32 [T_img]: the image stream in a given tokenizer's ids: global view, then the tiled view."""
        views = []
        for height, width in ((FEATURES, FEATURES), grid(*self.tiling)):
            row = [patch] * width + [column]
            views += [start, *row * height, end]
        return np.array(views, np.int32)


def preprocess(
    image: ImageInput,
    tokens: int | str | None = None,
    max_crops: int = 12,
    resize: str = "pad",
    rule: str = "canvas",
) -> Preprocessed:
    """Tile one image (a path, a PIL image or uint8 [h, w, 3]).

    `tokens` None is the released model's behaviour with at most `max_crops` tiles; a multiple of 144 fixes the number
    of tiles, a tier (low, medium, high) their range, and `rule` chooses the tiling by aspect.
    Raises ImageError for an image, BudgetError for a budget that can't be.
    """
    _check_resize(resize)
    pixels = open_image(image)
    tiling = choose_tiling(pixels.shape[0], pixels.shape[1], tokens, max_crops, rule)
    canvas = tiling_to_resolution(tiling)
    whole, _ = _fit(pixels, (CROP, CROP), resize)
    tiled, unpadded = _fit(pixels, canvas, resize)
    corners = [(WINDOW * i, WINDOW * j) for i in range(tiling[0]) for j in range(tiling[1])]
    crops = [whole, *(tiled[y : y + CROP, x : x + CROP] for y, x in corners)]
    masks = [_patches(unpadded[y : y + CROP, x : x + CROP, None]).mean(axis=1, dtype=np.float32) for y, x in corners]
    # The mask of the global view comes last although its crop comes first: each crop uses its successor's mask.
    # The model was trained with that shift, so repairing it would change every feature.
    masks.append(np.full(PATCHES * PATCHES, -1, np.float32))
    images = np.stack([_patches((crop - MEAN) / STD) for crop in crops])
    return Preprocessed(tiling, canvas, images, np.stack(masks), index_map(tiling))


def choose_tiling(height: int, width: int, tokens: int | str | None, max_crops: int, rule: str) -> Tiling:
    """The tiling `preprocess` gives to an image of this size."""
    if tokens is None:
        return select_tiling(height, width, max_num_crops=max_crops, rule=rule)
    budget = parse_budget(tokens)
    if budget.crops is None:
        return tier_tiling(str(tokens), (width, height), rule)
    return crops_to_tiling(budget.crops, (width, height), rule)


def fitting_tiling(
    image: ImageInput, tokens: int | str | None, max_crops: int, resize: str = "pad", rule: str = "canvas"
) -> Tiling:
    """The tiling that `preprocess` gives to an image; raises what it would, and computes nothing else."""
    _check_resize(resize)
    pixels = open_image(image)
    tiling = choose_tiling(pixels.shape[0], pixels.shape[1], tokens, max_crops, rule)
    for canvas in ((CROP, CROP), tiling_to_resolution(tiling)):
        _inner(pixels, canvas, resize)
    return tiling


def resize_for_target_vision_tokens(
    image: ImageInput, target_tokens: int, resize: str = "pad", rule: str = "canvas"
) -> Image.Image:
    """The image on the canvas of its budget's tiling, as a picture: bars are black pixels here, unknown to any mask.

    The budget is rounded down as in `tokens_to_crops`. A stock model with enough `max_crops` then picks that tiling.
    """
    _check_resize(resize)
    pixels = open_image(image)
    tiling = crops_to_tiling(tokens_to_crops(target_tokens), (pixels.shape[1], pixels.shape[0]), rule)
    fitted, _ = _fit(pixels, tiling_to_resolution(tiling), resize)
    return Image.fromarray(np.rint(fitted * 255).astype(np.uint8))


def _check_resize(resize: str) -> None:
    if resize not in RESIZES:
        raise BudgetError(f"resize must be one of {', '.join(RESIZES)}, got {resize!r}.")


def _fit(pixels: np.ndarray, canvas: tuple[int, int], resize: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [h, w, 3] -> float32 [H, W, 3] in 0..1 on a black canvas, and where it is not padding, bool [H, W]."""
    height, width = _inner(pixels, canvas, resize)
    if resize == "fill":
        top, left = (height - canvas[0]) // 2, (width - canvas[1]) // 2
        return resample(pixels, (height, width), (top, left, *canvas)), np.ones(canvas, bool)
    top, left = (canvas[0] - height) // 2, (canvas[1] - width) // 2
    out = np.zeros((*canvas, 3), np.float32)
    out[top : top + height, left : left + width] = resample(pixels, (height, width))
    unpadded = np.zeros(canvas, bool)
    unpadded[top : top + height, left : left + width] = True
    return out, unpadded


def _inner(pixels: np.ndarray, canvas: tuple[int, int], resize: str) -> tuple[int, int]:
    """Height and width of the resized image: within the canvas, or around it to be cut."""
    sides = np.array(pixels.shape[:2], np.float32)
    scales = np.array(canvas, np.float32) / sides  # [2], float32 as in the reference: sizes may differ by a pixel else
    if resize == "fill":
        height, width = (int(s) for s in np.ceil(sides * scales.max()))
        return height, width
    height, width = (int(s) for s in sides * scales.min())
    if min(height, width) < 1:
        raise ImageError(
            f"Each side must keep at least 1 pixel on the canvas: {pixels.shape[1]}×{pixels.shape[0]} fitted into "
            f"{canvas[1]}×{canvas[0]} becomes {width}×{height}. Cut the image, or use resize='fill'."
        )
    return height, width


def _patches(crop: np.ndarray) -> np.ndarray:
    """[336, 336, c] -> [576, 14*14*c], patches row-major."""
    channels = crop.shape[2]
    split = crop.reshape(PATCHES, PATCH, PATCHES, PATCH, channels).transpose(0, 2, 1, 3, 4)
    return split.reshape(PATCHES * PATCHES, PATCH * PATCH * channels)


def index_map(tiling: Tiling) -> np.ndarray:
    """int32 [n+1, 144]: where each feature goes in the image stream, overlaps once, BOS not counted."""
    rows, columns = tiling
    own = np.arange(FEATURES)
    width = grid(rows, columns)[1]
    first = FEATURES * (FEATURES + 1) + 3  # after the global view with its start and end, and the second start

    def kept(tile: int, tiles: int) -> np.ndarray:
        # a tile gives its two outer rows (columns) on each side to the neighbour, if there is one
        return ((own >= 2) | (tile == 0)) & ((own < FEATURES - 2) | (tile == tiles - 1))

    maps = [1 + (FEATURES + 1) * own[:, None] + own]
    for i in range(rows):
        for j in range(columns):
            positions = first + (STEP * i + own[:, None]) * (width + 1) + STEP * j + own
            maps.append(np.where(kept(i, rows)[:, None] & kept(j, columns), positions, UNUSED))
    index = np.stack(maps).reshape(-1, TOKENS_PER_CROP).astype(np.int32)
    assert index.max() == image_tokens(rows, columns) - 3, "the last patch is followed by a column token and the end"
    return index


def feature_index(index: np.ndarray) -> np.ndarray:
    """int64 [t]: which features an index map keeps, in the order of the sequence."""
    flat = index.reshape(-1)
    kept = np.flatnonzero(flat >= 0)
    return kept[np.argsort(flat[kept], kind="stable")].astype(np.int64)
