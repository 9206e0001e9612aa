"""Antialiased bilinear resizing by ordinary operators: `transform/molmoe/resampling.py` as a graph, for any sizes.

Weights are computed from the sizes, in float64 and float32 where that file has them. A strip of outputs needs a band of
inputs, so each strip is one small dense product, and nothing larger than a band is ever converted to float.
"""

import numpy as np

from export.graph.builder import DOUBLE, FLOAT, INT64, Graph

STRIP = 16  # outputs a product: more would multiply more zeros, fewer would call more operators


class Axis:
    """One axis of `size` inputs and `resized` outputs, both int64 scalars."""

    def __init__(self, g: Graph, size: str, resized: str) -> None:
        self.g, self.size = g, size
        self._half = g.constant(np.array(0.5))
        scale = g.op("Div", g.op("Cast", size, to=FLOAT), g.op("Cast", resized, to=FLOAT))
        self._support = g.op("Max", scale, g.float32(1))
        self._inverse = g.op("Cast", g.op("Div", g.float32(1), self._support), to=DOUBLE)
        self._step = g.op("Cast", scale, to=DOUBLE)

    def band(self, outputs: str) -> tuple[str, str]:
        """The inputs that outputs [o] need: the first, and the one behind the last."""
        first, behind = self._reach(self._center(outputs))
        return self.g.op("ReduceMin", first, keepdims=0), self.g.op("ReduceMax", behind, keepdims=0)

    def weights(self, outputs: str, begin: str, end: str) -> str:
        """float32 [o, end - begin]: what each input of a band counts for each output; rows add up to 1."""
        g, center = self.g, self._center(outputs)
        first, behind = self._reach(center)
        center, first, behind = (g.op("Unsqueeze", value, g.ints(1)) for value in (center, first, behind))
        place = g.op("Range", begin, end, g.int(1))
        distance = g.op("Cast", g.op("Sub", g.op("Cast", place, to=FLOAT), center), to=DOUBLE)
        distance = g.op("Cast", g.op("Mul", g.op("Add", distance, self._half), self._inverse), to=FLOAT)
        weight = g.op("Max", g.op("Sub", g.float32(1), g.op("Abs", distance)), g.float32(0))
        reached = g.op("And", g.op("Not", g.op("Less", place, first)), g.op("Less", place, behind))
        weight = g.op("Where", reached, weight, g.float32(0))
        return g.op("Div", weight, g.op("ReduceSum", weight, g.ints(1), keepdims=1))

    def _center(self, outputs: str) -> str:
        g = self.g
        middle = g.op("Add", g.op("Cast", outputs, to=DOUBLE), self._half)
        return g.op("Cast", g.op("Mul", middle, self._step), to=FLOAT)

    def _reach(self, center: str) -> tuple[str, str]:
        g = self.g

        def edge(kind: str) -> str:
            wide = g.op("Cast", g.op(kind, center, self._support), to=DOUBLE)
            return g.op("Cast", g.op("Add", wide, self._half), to=INT64)

        return g.op("Max", edge("Sub"), g.int(0)), g.op("Min", edge("Add"), self.size)


def resample(g: Graph, values: str, axis: Axis, start: str, count: str, *, moving: str = "", offset: str = "") -> str:
    """[inputs, m] of any type -> float32 [count, m]: of the axis's outputs those from `start` on.

    `start`, `count`, `moving` and `offset` are int64 scalars: where `moving` is 0, all outputs are the first one;
    `offset` is the input at which `values` begins, 0 where not said.
    """
    last = g.op("Sub", count, g.int(1))

    def strip(number: str) -> str:
        own = g.op("Add", g.op("Mul", number, g.int(STRIP)), g.constant(np.arange(STRIP)))
        outputs = g.op("Add", g.op("Min", own, last), start)  # those beyond the last are cut off in the end
        if moving:
            outputs = g.op("Mul", outputs, moving)
        begin, end = axis.band(outputs)
        here = [g.op("Sub", at, offset) if offset else at for at in (begin, end)]
        band = g.op("Slice", values, *(g.op("Unsqueeze", at, g.ints(0)) for at in here), g.ints(0))
        return g.op("MatMul", axis.weights(outputs, begin, end), g.op("Cast", band, to=FLOAT))

    strips = g.op("Div", g.op("Add", last, g.int(STRIP)), g.int(STRIP))
    stacked = g.each(strips, strip, FLOAT)  # [strips, STRIP, m]
    shape = g.op("Concat", g.ints(-1), g.op("Shape", values, start=1, end=2), axis=0)
    return g.op("Slice", g.op("Reshape", stacked, shape), g.ints(0), g.op("Unsqueeze", count, g.ints(0)), g.ints(0))
