"""`preprocess.onnx`: a picture -> what the vision tower takes and the ids that stand for it, as one variant cuts it.

`transform/molmoe/preprocessing.py` and `tiling.py` by ordinary operators, so that a runtime needs nothing but a decoder
of picture files. Tilings are compared in whole numbers, sizes rounded in float32, as there.
h, w sides of the picture; r, c rows and columns of tiles, n = r*c; G, H patches of a canvas, down and across.
"""

import numpy as np

from export.graph.builder import EARLIER, FLOAT, INT64, UINT8, Graph
from export.graph.resample import Axis, resample
from export.graph.tiling import choose_tiling, crop_patches, feature_index, image_ids, pair
from transform.forms import REFERENCE
from transform.molmoe.preprocessing import MEAN, STD
from transform.molmoe.tiling import CROP, MARGIN, PATCH, PATCHES, WINDOW
from transform.special_tokens import ImageTokens

VALUES = 3 * PATCH * PATCH


def preprocess_graph(
    ids: ImageTokens, tokens: int | str | None, max_crops: int = 12, resize: str = "pad", rule: str = "canvas"
) -> Graph:
    """The graph of one policy, whose words are those of `preprocess`.

    image uint8 [h, w, 3] -> images float32 [n+1, 576, 588], image_masks float32 [n+1, 576], feature_index int64 [t] and
    image_ids int64 [T].
    """
    g = Graph("preprocess", REFERENCE, opset=EARLIER)
    image = g.input("image", UINT8, ["height", "width", 3])
    sides = g.op("Shape", image, start=0, end=2)
    shape = choose_tiling(g, sides, tokens, max_crops, rule)  # [2]
    rows, columns = pair(g, shape)
    canvas = g.op("Add", g.op("Mul", shape, g.int(WINDOW)), g.int(MARGIN))
    whole, _ = _view(g, image, sides, g.ints(CROP, CROP), resize)  # [576, 588]
    tiled, shares = _view(g, image, sides, canvas, resize)  # [G*H, 588], [G*H]
    places = crop_patches(g, rows, columns)  # [n*576]
    cut = g.op("Reshape", g.op("Gather", tiled, places, axis=0), g.ints(-1, PATCHES**2, VALUES))
    images = g.op("Concat", g.op("Unsqueeze", whole, g.ints(0)), cut, axis=0)
    masks = g.op("Reshape", g.op("Gather", shares, places, axis=0), g.ints(-1, PATCHES**2))
    # The global view's mask comes last although its crop comes first, as the model was trained.
    masks = g.op("Concat", masks, g.constant(np.full((1, PATCHES**2), -1, np.float32)), axis=0)
    g.output("images", images, FLOAT, ["crops", PATCHES**2, VALUES])
    g.output("image_masks", masks, FLOAT, ["crops", PATCHES**2])
    g.output("feature_index", feature_index(g, rows, columns), INT64, ["features"])
    g.output("image_ids", image_ids(g, rows, columns, ids), INT64, ["image_tokens"])
    return g


def _view(g: Graph, image: str, sides: str, canvas: str, resize: str) -> tuple[str, str]:
    """The picture on a `canvas` [2], normalised: float32 [G*H, 588], patches row-major, each (dy, dx, rgb); and what
    share of each patch is no padding, float32 [G*H]."""
    exact = g.op("Cast", sides, to=FLOAT)
    scales = g.op("Div", g.op("Cast", canvas, to=FLOAT), exact)
    if resize == "fill":
        size = g.op("Cast", g.op("Ceil", g.op("Mul", exact, g.op("ReduceMax", scales))), to=INT64)
        start, shown = g.op("Div", g.op("Sub", size, canvas), g.int(2)), canvas
    else:
        size = g.op("Cast", g.op("Mul", exact, g.op("ReduceMin", scales)), to=INT64)
        start, shown = g.ints(0, 0), size
    before = g.op("Div", g.op("Sub", canvas, shown), g.int(2))
    pixels = _padded(g, _resized(g, image, sides, size, start, shown, resize), canvas, shown, before)
    grid = g.op("Div", canvas, g.int(PATCH))
    down, across = (g.op("Slice", grid, g.ints(at), g.ints(at + 1)) for at in range(2))
    split = g.op("Concat", across, g.ints(PATCH), down, g.ints(PATCH, 3), axis=0)
    patches = g.op("Transpose", g.op("Reshape", pixels, split), perm=[2, 0, 3, 1, 4])  # [G, H, dy, dx, rgb]
    patches = g.op("Sub", g.op("Reshape", patches, g.ints(-1, VALUES)), g.constant(np.tile(MEAN, PATCH * PATCH)))
    return g.op("Div", patches, g.constant(np.tile(STD, PATCH * PATCH))), _shares(g, grid, shown, before)


def _resized(g: Graph, image: str, sides: str, size: str, start: str, shown: str, resize: str) -> str:
    """float32 [W, H, 3] in 0..1, W and H those of `shown`: of the picture resized to `size` what begins at `start`.

    All are [2], height and width.
    """
    (height, width), (tall, wide) = pair(g, sides), pair(g, size)
    (top, left), (rows, columns) = pair(g, start), pair(g, shown)
    down, across = Axis(g, height, tall), Axis(g, width, wide)
    offset = ""
    if resize == "fill":  # what is cut away is not resized first: it may be almost all of a long picture
        last = g.op("Sub", g.op("Add", left, columns), g.int(1))
        ends = [g.op("Unsqueeze", at, g.ints(0)) for at in (left, last)]
        offset, behind = across.band(g.op("Concat", *ends, axis=0))
        image = g.op("Slice", image, *(g.op("Unsqueeze", at, g.ints(0)) for at in (offset, behind)), g.ints(1))
    # torch's kernel repeats the first row in a result one pixel wide, and the model's own pipeline with it
    repeats = g.op("And", g.op("Equal", wide, g.int(1)), g.op("Not", g.op("Equal", tall, height)))
    moving = g.op("Cast", g.op("Not", repeats), to=INT64)
    values = g.op("Reshape", image, g.ints(0, -1))  # [h, w*3]
    values = g.op("Reshape", resample(g, values, down, top, rows, moving=moving), g.ints(0, -1, 3))
    values = g.op("Reshape", g.op("Transpose", values, perm=[1, 0, 2]), g.ints(0, -1))  # [w, rows*3]
    values = g.op("Reshape", resample(g, values, across, left, columns, offset=offset), g.ints(0, -1, 3))
    return g.op("Clip", g.op("Div", values, g.float32(255)), g.float32(0), g.float32(1))


def _padded(g: Graph, pixels: str, canvas: str, shown: str, before: str) -> str:
    """[shown width, shown height, 3] -> [W, H, 3] with black bars."""
    behind = g.op("Sub", g.op("Sub", canvas, shown), before)
    turned = [g.op("Gather", value, g.ints(1, 0), axis=0) for value in (before, behind)]
    return g.op("Pad", pixels, g.op("Concat", turned[0], g.ints(0), turned[1], g.ints(0), axis=0))


def _shares(g: Graph, grid: str, shown: str, before: str) -> str:
    """float32 [G*H]: the part of each patch that the picture covers; rows times columns that it has there."""
    covered = []
    for patches, count, first in zip(*(pair(g, value) for value in (grid, shown, before)), strict=True):
        edge = g.op("Mul", g.op("Range", g.int(0), patches, g.int(1)), g.int(PATCH))
        end = g.op("Min", g.op("Add", edge, g.int(PATCH)), g.op("Add", first, count))
        covered.append(g.op("Max", g.op("Sub", end, g.op("Max", edge, first)), g.int(0)))
    pixels = g.op("Mul", g.op("Unsqueeze", covered[0], g.ints(1)), covered[1])
    return g.op("Div", g.op("Cast", g.op("Reshape", pixels, g.ints(-1)), to=FLOAT), g.float32(PATCH * PATCH))
