"""The experts that tokens chose, one after another in a `Loop`: a block of many has as many nodes as one of few.

Most files hold the experts of a block back to back, in some order. Such a span is one array of equal rows, each a tile
of some expert's matrix, so that the body takes a matrix by a number. In a body nothing is constant: no runtime widens
16-bit weights at load.

n tokens, k experts per token, E experts, d hidden width, I inner width; m tokens that chose one expert.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from export.graph.activation import expert_activation
from export.graph.builder import TYPES, Graph
from transform.arrays import Array
from transform.checkpoint import Checkpoint, Tensor
from transform.experts import PARTS, Expert

MOST_SPANS = 4  # a block seldom lies in more files than two
SUMMED_TILE = 1 << 19  # the same where products of tiles are added up: smaller ones are mostly adding
TILE = 1 << 17  # elements of a matrix that are widened at once, at most: whole ones leave the processor's cache


@dataclass(frozen=True)
class Spans:
    """A block's matrices, all of one size and type, as spans that lie back to back."""

    spans: tuple[tuple[Tensor, ...], ...]
    at: dict[str, tuple[int, int]]  # name of a matrix -> its span, its number there
    tiles: int  # per matrix: groups of whole rows, as many in [I, d] as in [d, I]


def find_spans(experts: Sequence[Expert]) -> Spans | None:
    """How a block's experts lie; None where they can't be taken by a number: of several types, in too many pieces."""
    gate = experts[0].gate
    matrices = [getattr(expert, part) for part in PARTS for expert in experts]
    if {(matrix.stored, matrix.nbytes) for matrix in matrices} != {(gate.stored, gate.nbytes)}:
        return None
    matrices.sort(key=lambda matrix: (matrix.file.name, matrix.start))
    spans = [matrices[:1]]
    for before, matrix in pairwise(matrices):
        if (matrix.file, matrix.start) == (before.file, before.start + before.nbytes):
            spans[-1].append(matrix)
        else:
            spans.append([matrix])
    if len(spans) > MOST_SPANS:
        return None
    at = {matrix.name: (s, number) for s, span in enumerate(spans) for number, matrix in enumerate(span)}
    return Spans(tuple(map(tuple, spans)), at, _tiles(*gate.shape))


def _tiles(inner: int, width: int) -> int:
    """The fewest tiles of at most TILE elements into which both the rows of [I, d] and of [d, I] fall."""
    common = math.gcd(inner, width)
    fitting = (t for t in range(1, common + 1) if common % t == 0 and inner * width <= TILE * t)
    return next(fitting, common)


def looped_experts(g: Graph, experts: Sequence[Expert], spans: Spans, x: str, weights: str, chosen: str) -> str:
    """A block's experts on x [n, d], as `chosen` [n, k] by every token, times `weights` [n, k], summed -> [n, d]."""
    inner, width = experts[0].gate.shape
    tiles = spans.tiles

    def compute(run: str, of_expert: Callable[[str], str]) -> str:
        gate_up = _matrices(g, experts, spans, of_expert, "gate", "up")
        down = _matrices(g, experts, spans, of_expert, "down")

        def gated(t: str) -> str:
            both = g.op("Gemm", run, gate_up(t), transB=1)
            left, right = g.ops("Split", 2, both, axis=1, num_outputs=2)
            return g.op("Mul", left, g.op("Mul", g.op("Sigmoid", left), right))

        hidden = _side_by_side(g, tiles, inner, gated)
        return _side_by_side(g, tiles, width, lambda t: g.op("Gemm", hidden, down(t), transB=1))

    return _looped(g, width, x, weights, chosen, compute)


def looped_slabs(g: Graph, checkpoint: Checkpoint, i: int, x: str, weights: str, chosen: str) -> str:
    """The same of block i whose matrices are turned, [in, out]: some rows of one at a time, their products added up."""
    slabs = {role: checkpoint.tensor(f"expert.{role}", i) for role in ("gate_up", "down_slab")}
    biases = {role: checkpoint.find(f"expert.{role}.bias", i) for role in slabs}
    views = {role: _tiled(g, slab) for role, slab in slabs.items()}
    for bias in biases.values():
        if bias is not None:
            g.stored(bias)  # as in `_view`

    def compute(run: str, of_expert: Callable[[str], str]) -> str:
        def linear(value: str, role: str) -> str:
            (count, rows, columns), view, bias = slabs[role].shape, views[role], biases[role]
            tiles = view.shape[0] // count
            first = of_expert(g.constant(tiles * np.arange(count)))  # [1]
            parts = g.op("Reshape", value, g.ints(-1, tiles, rows // tiles))  # [m, tiles, rows of one]

            def product(t: str, total: str) -> str:
                matrix = g.op("Reshape", g.rows(view, g.op("Add", first, t)), g.ints(-1, columns))
                return g.op("Gemm", g.op("Gather", parts, t, axis=1), matrix, *([total] if total else []))

            total = "" if bias is None else g.op("Reshape", _row(g, bias, of_expert), g.ints(-1))
            total = product(g.int(0), total)
            if tiles == 1:
                return total
            return g.fold(g.int(tiles - 1), lambda t, before: product(g.op("Add", t, g.int(1)), before), total)

        return linear(expert_activation(g, checkpoint.graph, linear(run, "gate_up")), "down_slab")

    return _looped(g, checkpoint.settings.hidden, x, weights, chosen, compute)


def _tiled(g: Graph, slab: Tensor) -> Tensor:
    """[E * tiles, numbers of a tile] over a slab [E, rows, columns]: each is as many whole rows."""
    count, rows, columns = slab.shape
    fitting = (t for t in range(1, rows + 1) if rows % t == 0 and rows * columns <= SUMMED_TILE * t)
    tiles = next(fitting, rows)
    view = slab._replace(name=f"{slab.name}.tiles", shape=(count * tiles, rows * columns // tiles))
    g.stored(view)
    return view


def _looped(
    g: Graph, width: int, x: str, weights: str, chosen: str, compute: Callable[[str, Callable[[str], str]], str]
) -> str:
    """compute(rows of x, how to take an expert's row of a table) of every expert that is used, weighted and summed."""
    used = g.op("Unique", chosen)

    def add(step: str, total: str) -> str:
        e = g.op("Gather", used, g.op("Unsqueeze", step, g.ints(0)), axis=0)  # [1]
        slots = g.op("Transpose", g.op("NonZero", g.op("Equal", chosen, e)), perm=[1, 0])  # [m, 2]: token, rank
        tokens = g.op("Gather", slots, g.ints(0), axis=1)  # [m, 1]
        run = g.op("GatherND", x, tokens)  # [m, d]
        of_expert = cache(lambda table: g.op("Gather", table, e, axis=0))  # equal nodes are work for runtimes at load
        found = compute(run, of_expert)
        weight = g.op("Unsqueeze", g.op("GatherND", weights, slots), g.ints(1))
        return g.op("ScatterND", total, tokens, g.op("Mul", found, weight), reduction="add")

    nothing = g.op("ConstantOfShape", g.op("Shape", x), value=g.zero())
    total = g.fold(g.op("Size", used), add, nothing)
    return g.op("Reshape", total, g.ints(-1, width))  # what has no Loop's rules may then know the width


def _row(g: Graph, slab: Tensor, of_expert: Callable[[str], str]) -> str:
    """One expert's part of a slab, in the graph's type."""
    found = of_expert(g.stored(slab))
    return found if TYPES[slab.stored] == g.compute else g.op("Cast", found, to=g.compute)


def _view(g: Graph, span: tuple[Tensor, ...], tiles: int) -> Tensor:
    first = span[0]
    shape = (len(span) * tiles, math.prod(first.shape) // tiles)
    view = first._replace(name=f"{first.name}.span", shape=shape, nbytes=len(span) * first.nbytes)
    g.stored(view)  # initializers belong to the outer graph, or the body would hide them from the tools
    return view


def _matrices(
    g: Graph, experts: Sequence[Expert], found: Spans, of_expert: Callable[[str], str], *parts: str
) -> Callable[[str], str]:
    """t -> the t-th tiles of one expert's matrices, all of one shape, one below the other; t is "" where there is one.

    `of_expert`: a table's row for the expert.
    """
    matrices = [[getattr(expert, part) for part in parts] for expert in experts]
    rows, columns = matrices[0][0].shape
    shape = g.ints(len(parts) * rows // found.tiles, columns)
    views = [_view(g, span, found.tiles) for span in found.spans]
    places = np.array([[found.at[matrix.name] for matrix in row] for row in matrices])  # [E, parts, 2]
    spans, numbers = places[..., 0], places[..., 1] * found.tiles

    def row(table: Array) -> str:
        return of_expert(g.constant(np.ascontiguousarray(table)))

    if len(np.unique(spans)) == 1:
        first = g.op("Reshape", row(numbers), g.ints(-1))  # [parts]
        return lambda t: g.op("Reshape", g.rows(views[spans[0, 0]], g.op("Add", first, t) if t else first), shape)
    # taken from every span that holds some expert's, nothing from all but one: a branch each would take longer to open
    pieces = [
        (views[span], row(numbers[:, part]), row(spans[:, part] == span))
        for part in range(len(parts))
        for span in np.unique(spans[:, part])
    ]

    def tile(t: str) -> str:
        found = [
            g.rows(view, g.op("Compress", g.op("Add", number, t) if t else number, held, axis=0))
            for view, number, held in pieces
        ]
        return g.op("Reshape", g.op("Concat", *found, axis=0), shape)

    return tile


def _side_by_side(g: Graph, tiles: int, width: int, build: Callable[[str], str]) -> str:
    """Columns [m, width] of which build(t) yields the t-th part; build("") all of them where there is one."""
    if tiles == 1:
        return build("")
    parts = g.each(g.int(tiles), build, g.compute)  # [tiles, m, width / tiles]
    return g.op("Reshape", g.op("Transpose", parts, perm=[1, 0, 2]), g.ints(-1, width))
