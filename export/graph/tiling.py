"""Which tiling a picture gets, and what follows from it alone, in whole numbers: a part of `preprocess.onnx`.

`transform/molmoe/tiling.py` and the maps of `preprocessing.py` as operators, for any of a policy's tilings.
r, c rows and columns of tiles, n = r*c, int64 scalars; G, H patches of the canvas, down and across.
"""

import numpy as np

from export.graph.builder import BOOL, DOUBLE, FLOAT, Graph
from transform.arrays import Array
from transform.molmoe.tiling import (
    FEATURES,
    MARGIN,
    PATCH,
    PATCHES,
    STEP,
    TOKENS_PER_CROP,
    WINDOW,
    parse_budget,
    tilings,
)
from transform.special_tokens import ImageTokens


def pair(g: Graph, values: str) -> tuple[str, str]:
    """The two scalars of a [2]."""
    return g.op("Gather", values, g.int(0), axis=0), g.op("Gather", values, g.int(1), axis=0)


def choose_tiling(g: Graph, sides: str, tokens: int | str | None, max_crops: int, rule: str) -> str:
    """int64 [2]: rows and columns, as `choose_tiling` has them."""
    if tokens is None:
        table = np.array([t for crops in range(1, max_crops + 1) for t in tilings(crops)], np.int64)
        return g.op("Gather", g.constant(table), _stock(g, sides, table), axis=0)
    table = np.array(parse_budget(tokens).tilings, np.int64)  # [s, 2]
    if len(table) == 1:
        return g.constant(table[0])
    return g.op("Gather", g.constant(table), _nearest(g, sides, table, rule), axis=0)


def _stock(g: Graph, sides: str, table: Array) -> str:
    """Of the tilings that upscale the one that does so least, or else the one that downscales least."""
    inner = g.op("Cast", g.op("Sub", sides, g.int(MARGIN)), to=DOUBLE)
    ratios = g.op("Cast", g.op("Div", g.constant(table * float(WINDOW)), inner), to=FLOAT)  # a side of 0: infinite
    scale = g.op("ReduceMin", ratios, axes=[1], keepdims=0)  # [s]
    covers = g.op("Not", g.op("Less", scale, g.float32(1)))
    least = g.op("ArgMin", g.op("Where", covers, scale, g.float32(np.inf)), axis=0, keepdims=0)
    most = g.op("ArgMax", scale, axis=0, keepdims=0)
    covered = g.op("Cast", g.op("ReduceMax", g.op("Cast", covers, to=FLOAT), keepdims=0), to=BOOL)
    return g.op("Where", covered, least, most)


def _nearest(g: Graph, sides: str, table: Array, rule: str) -> str:
    """The first of the tilings that no other is nearer than. Distances are fractions, compared in whole numbers."""
    (height, width), (rows, columns) = pair(g, sides), table.T
    if rule == "linear":  # |c/r - w/h|; h is the same for all
        tall, wide = (g.op("Mul", g.constant(part), side) for part, side in ((columns, height), (rows, width)))
        above, below = g.op("Abs", g.op("Sub", tall, wide)), g.constant(rows)
    else:
        tall, wide = (g.op("Mul", g.constant(2 * part + 1), side) for part, side in ((columns, height), (rows, width)))
        above, below = g.op("Max", tall, wide), g.op("Min", tall, wide)
    ours = g.op("Mul", g.op("Unsqueeze", above, g.ints(1)), below)  # [s, s]: above_i * below_j
    theirs = g.op("Mul", g.op("Unsqueeze", below, g.ints(1)), above)
    first = g.constant(np.triu(np.ones((len(table), len(table)), np.int64)))  # of equals the first wins
    wins = g.op("Cast", g.op("Less", ours, g.op("Add", theirs, first)), to=FLOAT)
    return g.op("ArgMax", g.op("ReduceMin", wins, axes=[1], keepdims=0), axis=0, keepdims=0)


def _spread(g: Graph, tiles: str, step: int) -> str:
    """int64 [tiles, 24]: at which patch of the canvas each patch of each tile lies, along one side."""
    first = g.op("Mul", g.op("Range", g.int(0), tiles, g.int(1)), g.int(step))
    return g.op("Add", g.op("Unsqueeze", first, g.ints(1)), g.constant(np.arange(PATCHES)))


def crop_patches(g: Graph, rows: str, columns: str) -> str:
    """int64 [n*576]: which patch of the canvas [G*H] each patch of each crop is."""
    step = WINDOW // PATCH
    across = g.op("Add", g.op("Mul", columns, g.int(step)), g.int(PATCHES - step))
    down = g.op("Unsqueeze", g.op("Mul", _spread(g, rows, step), across), g.ints(1, 3))  # [r, 1, 24, 1]
    places = g.op("Add", down, g.op("Unsqueeze", _spread(g, columns, step), g.ints(0, 2)))  # [1, c, 1, 24]
    return g.op("Reshape", places, g.ints(-1))


def feature_index(g: Graph, rows: str, columns: str) -> str:
    """int64 [t]: the global view's features, then those of the tiled view, each from the tile that keeps it."""

    def place(tiles: str) -> tuple[str, str]:
        # a tile gives its two outer features on each side to the neighbour, if there is one
        view = g.op("Range", g.int(0), g.op("Add", g.op("Mul", tiles, g.int(STEP)), g.int(4)), g.int(1))
        tile = g.op("Max", g.op("Div", g.op("Sub", view, g.int(2)), g.int(STEP)), g.int(0))
        tile = g.op("Min", tile, g.op("Sub", tiles, g.int(1)))
        return tile, g.op("Sub", view, g.op("Mul", tile, g.int(STEP)))

    (row, y), (column, x) = place(rows), place(columns)
    crop = g.op("Add", g.op("Unsqueeze", g.op("Mul", row, columns), g.ints(1)), column)
    inside = g.op("Add", g.op("Unsqueeze", g.op("Mul", y, g.int(FEATURES)), g.ints(1)), x)
    crop = g.op("Mul", g.op("Add", crop, g.int(1)), g.int(TOKENS_PER_CROP))
    tiled = g.op("Reshape", g.op("Add", crop, inside), g.ints(-1))
    return g.op("Concat", g.constant(np.arange(TOKENS_PER_CROP)), tiled, axis=0)


def image_ids(g: Graph, rows: str, columns: str, ids: ImageTokens) -> str:
    """int64 [T]: the global view, then the tiled view, with start, end and a column id per row."""
    whole = [ids.start, *([ids.patch] * FEATURES + [ids.column]) * FEATURES, ids.end, ids.start]
    sides = [g.op("Add", g.op("Mul", tiles, g.int(STEP)), g.int(4)) for tiles in (rows, columns)]
    height, width = (g.op("Unsqueeze", side, g.ints(0)) for side in sides)
    patches = g.op("Expand", g.int(ids.patch), g.op("Concat", height, width, axis=0))
    column = g.op("Expand", g.int(ids.column), g.op("Concat", height, g.ints(1), axis=0))
    tiled = g.op("Reshape", g.op("Concat", patches, column, axis=1), g.ints(-1))
    return g.op("Concat", g.ints(*whole), tiled, g.ints(ids.end), axis=0)
