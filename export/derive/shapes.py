"""Follow shapes through a part of a graph with sample sizes, and notice where they don't fit.

Unknown sizes are large primes (batch, tokens, k), so that products of them can't be mistaken for one another. Known of
a value: its shape, its numbers where it is a short vector of integers, and an exclusive upper bound where it holds
indices. None is "not known", and what isn't known is never held against anyone. Values are never computed.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from export.derive.graph import SMALL, Node
from transform.arrays import Array

BATCH, SEQUENCE, PAST, OTHER, TOP_K = 10007, 10009, 10037, 10039, 10061
_LARGEST = 1 << 200  # of a number: products of a dozen of these primes
Dim = int | None


class MisfitError(Exception):
    """Two sizes that must agree don't, or an index reaches beyond its table."""


class Known(NamedTuple):
    """What is known of a value."""

    shape: tuple[Dim, ...] | None = None
    numbers: tuple[Dim, ...] | None = None
    bound: int | None = None


NOTHING = Known()


def of_constant(value: Array) -> Known:
    """A constant; only integers have numbers that matter."""
    if value.dtype.kind not in "iu" or value.size > SMALL or value.ndim > 1:
        return Known(value.shape)
    numbers = tuple(int(number) for number in value.ravel())
    return Known(value.shape, numbers, max(numbers, default=-1) + 1)


def follow(node: Node, given: Sequence[Known]) -> list[Known]:
    """What is known of a node's outputs; raises MisfitError."""
    rule = _RULES.get(node.op)
    if rule is None:
        return [NOTHING] * len(node.outputs)
    try:
        found = rule(node, given)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # rules take inputs, axes and attributes as the operator has them
        raise MisfitError(f"{node.op} has inputs or attributes that it can't have ({error})") from error
    several = found if isinstance(found, list) else [found] * len(node.outputs)
    return (several + [NOTHING] * len(node.outputs))[: len(node.outputs)]


def broadcast(*shapes: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """The common shape, numpy's rules."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    rank = max(map(len, known), default=0)
    found: list[Dim] = []
    for column in zip(*((1,) * (rank - len(shape)) + shape for shape in known), strict=True):
        sizes = {size for size in column if size != 1}
        fixed = sizes - {None}
        if len(fixed) > 1:
            raise MisfitError(f"{known} don't go together")
        found.append(None if sizes and not fixed else fixed.pop() if fixed else 1)
    return tuple(found)


def _like_all(node: Node, given: Sequence[Known]) -> Known:
    shape = broadcast(*(known.shape for known in given))
    return Known(shape, _arithmetic(node.op, given), _bound(node.op, given))


_CALCULATE: dict[str, Callable[[int, int], int]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a // b,
    "Mod": lambda a, b: a % b,
    "Max": max,
    "Min": min,
}


def _arithmetic(op: str, given: Sequence[Known]) -> tuple[Dim, ...] | None:
    if len(given) != 2 or op not in _CALCULATE or given[0].numbers is None or given[1].numbers is None:
        return None
    left, right = given[0].numbers, given[1].numbers
    size = max(len(left), len(right))
    if not left or not right or (op in ("Div", "Mod") and 0 in right):
        return None
    pairs = zip(left * (size // len(left)), right * (size // len(right)), strict=True)
    return tuple(None if a is None or b is None else _in_range(_CALCULATE[op](a, b)) for a, b in pairs)


def _in_range(number: int) -> int | None:
    """Not known where no graph's sizes lead: products of products grow without end."""
    return number if abs(number) < _LARGEST else None


def _bound(op: str, given: Sequence[Known]) -> int | None:
    first = given[0].bound if given else None
    if len(given) == 1:
        return first
    second = given[1].numbers[0] if given[1].numbers and len(given[1].numbers) == 1 else None
    if op == "Sub":  # of something not negative
        return first
    if op == "Mod" and second:
        return second
    if first is None or not second or second < 0:
        return None
    if op == "Div":
        return -(-first // second)
    return _in_range((first - 1) * second + 1) if op == "Mul" else None


def _same(_: Node, given: Sequence[Known]) -> Known:
    return given[0]


def _shape_only(_: Node, given: Sequence[Known]) -> Known:
    return Known(given[0].shape)


def _shape(node: Node, given: Sequence[Known]) -> Known:
    shape = given[0].shape
    if shape is None:
        return Known((None,))
    part = shape[node.attribute("start", 0) : node.attribute("end", len(shape))]
    return Known((len(part),), part)


def _axes(node: Node, given: Sequence[Known], rank: int) -> list[int] | None:
    chosen = node.attribute("axes")
    if chosen is None and len(given) > 1:
        chosen = given[1].numbers
    elif chosen is None:
        return None
    if chosen is None or any(axis is None for axis in chosen):
        return None
    return [axis % rank for axis in chosen] if rank else []


def _reshape(node: Node, given: Sequence[Known]) -> Known:
    data, wanted = given[0], given[1].numbers
    if wanted is None:
        rank = given[1].shape[0] if given[1].shape else None
        return Known(None if rank is None or rank > SMALL else (None,) * rank, data.numbers, data.bound)
    target = list(wanted)
    if not node.attribute("allowzero", 0) and data.shape is not None:
        target = [data.shape[at] if size == 0 else size for at, size in enumerate(target)]
    free = [at for at, size in enumerate(target) if size == -1]
    if None in target or data.shape is None or None in data.shape:
        shape = tuple(None if size == -1 else size for size in target)
        return Known(shape, data.numbers, data.bound)
    total = math.prod(size for size in data.shape if size is not None)
    rest = math.prod(size for size in target if size is not None and size != -1)
    if (total % rest if free and rest else total != rest) or len(free) > 1:
        raise MisfitError(f"{data.shape} can't become {target}")
    for at in free:
        target[at] = total // rest if rest else 0
    return Known(tuple(target), data.numbers, data.bound)


def _unsqueeze(node: Node, given: Sequence[Known]) -> Known:
    data = given[0]
    if data.shape is None:
        return NOTHING
    axes = node.attribute("axes") or (given[1].numbers if len(given) > 1 else None)
    if axes is None or None in axes:
        return NOTHING
    shape = list(data.shape)
    for axis in sorted(axis % (len(data.shape) + len(axes)) for axis in axes if axis is not None):
        shape.insert(axis, 1)
    return Known(tuple(shape), data.numbers, data.bound)


def _squeeze(node: Node, given: Sequence[Known]) -> Known:
    data = given[0]
    if data.shape is None:
        return Known(None, data.numbers, data.bound)
    axes = _axes(node, given, len(data.shape))
    if axes is None:
        axes = [at for at, size in enumerate(data.shape) if size == 1]
    return Known(tuple(size for at, size in enumerate(data.shape) if at not in axes), data.numbers, data.bound)


def _concat(node: Node, given: Sequence[Known]) -> Known:
    shapes = [known.shape for known in given]
    if any(shape is None for shape in shapes):
        return NOTHING
    ranked = [shape for shape in shapes if shape is not None]
    axis = node.attribute("axis") % len(ranked[0])
    others = broadcast(*(tuple(1 if at == axis else size for at, size in enumerate(shape)) for shape in ranked))
    assert others is not None
    sizes = [shape[axis] for shape in ranked]
    along = None if None in sizes else sum(size for size in sizes if size is not None)
    shape = (*others[:axis], along, *others[axis + 1 :])
    numbers: tuple[Dim, ...] | None = ()
    for known in given:
        numbers = None if numbers is None or known.numbers is None or len(shape) > 1 else (*numbers, *known.numbers)
        numbers = None if numbers is not None and len(numbers) > SMALL else numbers
    bounds = [known.bound for known in given]
    return Known(shape, numbers, None if None in bounds else max(bound for bound in bounds if bound is not None))


def _range(_: Node, given: Sequence[Known]) -> Known:
    numbers = [known.numbers[0] if known.numbers else None for known in given]
    start, limit, step = numbers
    if start is None or limit is None or step != 1:
        return Known((None,), None, limit)
    return Known((max(0, limit - start),), None, limit)


def _expand(_: Node, given: Sequence[Known]) -> Known:
    return Known(broadcast(given[0].shape, given[1].numbers), None, given[0].bound)


def _tile(_: Node, given: Sequence[Known]) -> Known:
    data, times = given[0].shape, given[1].numbers
    if data is None or times is None or len(data) != len(times):
        return NOTHING
    sizes = (None if a is None or b is None else _in_range(a * b) for a, b in zip(data, times, strict=True))
    return Known(tuple(sizes), None, given[0].bound)


def _transpose(node: Node, given: Sequence[Known]) -> Known:
    shape = given[0].shape
    if shape is None:
        return NOTHING
    order = node.attribute("perm") or list(range(len(shape)))[::-1]
    return Known(tuple(shape[axis] for axis in order), None, given[0].bound)


def _top_k(node: Node, given: Sequence[Known]) -> list[Known]:
    shape, count = given[0].shape, given[1].numbers
    if shape is None:
        return [NOTHING, NOTHING]
    axis = node.attribute("axis", -1) % len(shape)
    size = count[0] if count else None
    chosen = (*shape[:axis], size, *shape[axis + 1 :])
    return [Known(chosen, None, given[0].bound), Known(chosen, None, shape[axis])]


def _within(indices: Known, size: Dim) -> None:
    if indices.bound is not None and size is not None and indices.bound > size:
        raise MisfitError(f"indices below {indices.bound} into {size}")


def _gather(node: Node, given: Sequence[Known]) -> Known:
    data, indices = given
    if data.shape is None or indices.shape is None:
        return NOTHING
    axis = node.attribute("axis", 0) % len(data.shape)
    _within(indices, data.shape[axis])
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    numbers = None
    if data.numbers is not None and indices.numbers is not None and None not in indices.numbers:
        numbers = tuple(data.numbers[at] for at in indices.numbers if at is not None)
    return Known(shape, numbers, data.bound)


def _gather_nd(node: Node, given: Sequence[Known]) -> Known:
    data, indices = given
    if indices.shape is None or not indices.shape or indices.shape[-1] is None or node.attribute("batch_dims", 0):
        return NOTHING
    depth = indices.shape[-1]
    if data.shape is None:
        return NOTHING
    if depth == 1:
        _within(indices, data.shape[0])
    return Known((*indices.shape[:-1], *data.shape[depth:]), None, data.bound)


def _gather_elements(node: Node, given: Sequence[Known]) -> Known:
    data, indices = given
    if data.shape is not None:
        _within(indices, data.shape[node.attribute("axis", 0)])
    return Known(indices.shape, None, data.bound)


def _scatter_elements(node: Node, given: Sequence[Known]) -> Known:
    data, indices, updates = given
    _equal(indices.shape, updates.shape)
    if data.shape is not None:
        _within(indices, data.shape[node.attribute("axis", 0)])
    return Known(data.shape)


def _scatter_nd(_: Node, given: Sequence[Known]) -> Known:
    data, indices, updates = given
    if data.shape is not None and indices.shape and indices.shape[-1] is not None:
        depth = indices.shape[-1]
        if depth == 1:
            _within(indices, data.shape[0])
        _equal((*indices.shape[:-1], *data.shape[depth:]), updates.shape)
    return Known(data.shape, None, max(data.bound, updates.bound) if data.bound and updates.bound else None)


def _equal(one: tuple[Dim, ...] | None, other: tuple[Dim, ...] | None) -> None:
    if one is None or other is None:
        return
    if len(one) != len(other) or any(
        a is not None and b is not None and a != b for a, b in zip(one, other, strict=True)
    ):
        raise MisfitError(f"{one} must be {other}")


def _mat_mul(_: Node, given: Sequence[Known]) -> Known:
    a, b = given[0].shape, given[1].shape
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return NOTHING
    _equal(a[-1:], b[-2:-1])
    batch = broadcast(a[:-2], b[:-2])
    return NOTHING if batch is None else Known((*batch, a[-2], b[-1]))


def _gemm(node: Node, given: Sequence[Known]) -> Known:
    a, b = given[0].shape, given[1].shape
    if a is None or b is None:
        return NOTHING
    a = a[::-1] if node.attribute("transA", 0) else a
    b = b[::-1] if node.attribute("transB", 0) else b
    _equal(a[1:], b[:1])
    return Known((a[0], b[1]))


def _packed_linear(node: Node, given: Sequence[Known]) -> Known:
    shape = given[0].shape
    return NOTHING if shape is None else Known((*shape[:-1], node.attribute("N")))


def _packed_rows(node: Node, given: Sequence[Known]) -> Known:
    """Codes [rows, bytes], indices, scales [rows, blocks]: the last block is there as a whole."""
    codes, indices, scales = (known.shape for known in given[:3])
    if codes is None or indices is None or scales is None or scales[-1] is None:
        return NOTHING
    _within(given[1], codes[0])
    return Known((*indices, scales[-1] * node.whole("block_size", 128)))


def _split(node: Node, given: Sequence[Known]) -> list[Known]:
    count, shape = len(node.outputs), given[0].shape
    if shape is None:
        return [NOTHING] * count
    axis = node.attribute("axis", 0) % len(shape)
    sizes: Sequence[Dim] | None = node.attribute("split")
    if sizes is None and len(given) > 1:
        sizes = given[1].numbers or (None,) * count
    total = shape[axis]
    if sizes is None:
        if total is not None and total % count:
            raise MisfitError(f"{total} can't be split into {count}")
        sizes = (None if total is None else total // count,) * count
    elif None not in sizes and total is not None and sum(size or 0 for size in sizes) != total:
        raise MisfitError(f"{total} can't be split into {sizes}")
    return [Known((*shape[:axis], size, *shape[axis + 1 :]), None, given[0].bound) for size in sizes]


def _split_to_sequence(node: Node, given: Sequence[Known]) -> Known:
    """A sequence is described by one element: they are alike where one size is given."""
    shape, size = given[0].shape, given[1].numbers if len(given) > 1 else None
    if shape is None or size is None or len(size) != 1:
        return NOTHING
    axis = node.attribute("axis", 0) % len(shape)
    return Known((*shape[:axis], size[0], *shape[axis + 1 :]))


def _reduce(node: Node, given: Sequence[Known]) -> Known:
    shape = given[0].shape
    if shape is None:
        return NOTHING
    axes = _axes(node, given, len(shape))
    if axes is None:
        axes = list(range(len(shape)))
    if node.attribute("keepdims", 1):
        return Known(tuple(1 if at in axes else size for at, size in enumerate(shape)))
    return Known(tuple(size for at, size in enumerate(shape) if at not in axes))


def _constant_of_shape(_: Node, given: Sequence[Known]) -> Known:
    return Known(given[0].numbers)


def _slice(_: Node, given: Sequence[Known]) -> Known:
    data = given[0]
    if data.shape is None or len(given) < 3:
        return NOTHING
    starts, ends = given[1].numbers, given[2].numbers
    steps = given[4].numbers if len(given) > 4 else None
    if data.numbers is not None and starts and ends and None not in (*starts, *ends) and not (steps and steps != (1,)):
        numbers = data.numbers[starts[0] : ends[0]]
        return Known((len(numbers),), numbers)
    return Known((None,) * len(data.shape), None, data.bound)


_RULES: dict[str, Callable[[Node, Sequence[Known]], Known | list[Known]]] = {
    **dict.fromkeys(("Identity", "Cast", "CastLike", "Clip", "Abs"), _same),
    **dict.fromkeys(
        ("Softmax", "Sigmoid", "Relu", "Sqrt", "Reciprocal", "Neg", "Not", "Erf", "Exp", "CumSum", "Tanh", "Gelu",
         "LogSoftmax", "SimplifiedLayerNormalization", "RMSNormalization", "LayerNormalization", "QuickGelu",
         "Log", "MoE", "QMoE"),
        _shape_only,
    ),
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Pow", "Where", "Equal", "Less", "Greater", "LessOrEqual",
         "GreaterOrEqual", "And", "Or", "Xor"),
        _like_all,
    ),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"), _reduce),
    "Shape": _shape,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Range": _range,
    "Expand": _expand,
    "Tile": _tile,
    "Transpose": _transpose,
    "TopK": _top_k,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "GatherElements": _gather_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "MatMul": _mat_mul,
    "Gemm": _gemm,
    "MatMulNBits": _packed_linear,
    "GatherBlockQuantized": _packed_rows,
    "Split": _split,
    "SplitToSequence": _split_to_sequence,
    "SequenceAt": lambda _, given: Known(given[0].shape),
    "ConstantOfShape": _constant_of_shape,
    "Slice": _slice,
}  # fmt: skip
