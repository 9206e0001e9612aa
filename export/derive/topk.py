"""Find the routers of a graph, and give them another k.

A fused operator (`MoE`, `QMoE`) has k as an attribute. Elsewhere k is the number that the router's TopK takes, and it
is built into other constants behind it: shapes, repeats, divisors of slot numbers. Which of those that happen to have
the same value are k, the sizes say: k is replaced by a large prime at the TopK, and every constant must then be either
itself or that prime, such that all shapes fit, no index leaves its table, and the block gives the shape it takes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from export.derive.blocks import Block, Decoder
from export.derive.graph import CONTRIB, Network, Node
from export.derive.shapes import BATCH, NOTHING, OTHER, PAST, SEQUENCE, TOP_K, Known, MisfitError, follow, of_constant
from transform.errors import CheckpointError, KnobError

FUSED = ("MoE", "QMoE")
CHOOSING = (*FUSED, "TopK", "ArgMax", "If", "Loop", "Scan")  # a block without any of these has no experts
ARITHMETIC = ("Div", "Mod", "Mul")
# operator -> the inputs that may be k, or may hold it
_PLACES = {"Reshape": (1,), "Expand": (1,), "Tile": (1,), "Range": (1,), "ConstantOfShape": (0,), "Concat": None}
_MOST_STEPS = 100_000  # of the search, per block
_LOWEST = -1e4  # no softmax keeps anything of it, and float16 holds it
Place = tuple[Node, int, int]  # node, input, position within that constant


@dataclass(frozen=True)
class Router:
    """One block's choice of experts; `places` are the constants that are k, the TopK's own included.

    `problem`: why they can't all be told, if so; k itself is known.
    """

    node: Node
    k: int
    experts: int
    exit: str
    cone: list[Node] = field(repr=False)
    places: tuple[Place, ...] = field(repr=False)
    problem: str | None = None
    taker: Node | None = None  # the fused operator that is told what a TopK before it chose, and has the same k

    @property
    def fused(self) -> bool:
        """Whether k is an attribute."""
        return self.node.op in FUSED


def find_routers(network: Network, decoder: Decoder) -> list[Router | str | None]:
    """Per block its router, None where it has no experts, or the reason why there is none to rewrite."""
    values = _inputs(network, decoder.tokens)
    shape = _follow_all(network, network.cone(decoder.blocks[0].entry, ()), dict(values)).get(decoder.blocks[0].entry)
    if shape is None or shape.shape is None:
        return [f"the shape of the residual stream {decoder.blocks[0].entry!r} can't be followed"] * len(decoder.blocks)
    first, last = (decoder.stream.index(name) for name in (decoder.blocks[0].entry, decoder.blocks[-1].exit))
    stops = dict.fromkeys(decoder.stream[first : last + 1], Known(shape.shape))
    return [_router(network, block, {**values, **stops}, stops) for block in decoder.blocks]


def set_top_k(network: Network, routers: Sequence[Router | str | None], ks: Sequence[int]) -> None:
    """Give block i the k `ks[i]`; raises KnobError beyond its experts, CheckpointError where k isn't known."""
    copies: dict[tuple[Node, tuple[str, ...]], Node] = {}
    for i, (router, k) in enumerate(zip(routers, ks, strict=True)):
        if router is None:
            continue
        problem = router if isinstance(router, str) else router.problem
        if isinstance(router, str) or (problem and k != router.k):
            raise CheckpointError(
                f"every block needs a router whose k can be told; block {i}: {problem}. Drop blocks alone, or export "
                "the model again with that k."
            )
        if not 1 <= k <= router.experts:
            raise KnobError(
                f"k must be from 1 to {router.experts} (the experts of block {i}), got {k}. Choose one of these."
            )
        if k == router.k:
            continue
        if router.fused:
            router.node.set_int("k", k)
        else:
            _rewrite(network, router, k, copies)
        if router.taker is not None:
            router.taker.set_int("k", k)
    if copies:
        network.nodes += copies.values()
        network.sort()
    network.prune()


def mask_ranks(network: Network, routers: Sequence[Router], ks: Sequence[int]) -> None:
    """Zero the weights of the experts from rank `ks[i]` on: k experts are computed, `ks[i]` of them count.

    Where the softmax comes behind the choice, what it is taken of is made as low as it can be instead.
    """
    for router, k in zip(routers, ks, strict=True):
        if k < router.k:
            weights = _weights(network, router)
            readers = list(network.readers.get(weights, ()))
            kept = np.arange(router.k) < k
            of_logits = _meets_softmax(network, weights)
            row = np.where(kept, 0, _LOWEST) if of_logits else kept
            mask = network.add_constant(row.astype(np.float32))
            alike, masked = network.fresh(f"{weights}_mask"), network.fresh(f"{weights}_masked")
            for reader in readers:
                reader.rename({weights: masked})
            network.nodes += [
                network.new_node("CastLike", [mask, weights], [alike]),
                network.new_node("Add" if of_logits else "Mul", [weights, alike], [masked]),
            ]
    network.sort()


def _weights(network: Network, router: Router) -> str:
    """What the chosen experts weigh, or the logits of that: the TopK's values, or scores taken at its places."""
    values, places = router.node.outputs[:2]
    if network.readers.get(values):
        return values
    taken = [reader.outputs[0] for reader in network.readers.get(places, ()) if reader.op == "GatherElements"]
    return taken[0] if taken else values


def _meets_softmax(network: Network, value: str) -> bool:
    readers = network.readers.get(value, ())
    casts = [name for reader in readers if reader.op in ("Cast", "CastLike") for name in reader.outputs]
    return any(reader.op == "Softmax" for reader in readers) or any(_meets_softmax(network, name) for name in casts)


def _router(network: Network, block: Block, values: dict[str, Known], stops: dict[str, Known]) -> Router | str | None:
    cone = network.cone(block.exit, stops)
    if not any(node.op in CHOOSING for node in cone):
        return None
    fused = [node for node in cone if node.op in FUSED and node.proto.domain == CONTRIB]
    plain = [
        node
        for node in cone
        # of one that ranks groups of experts, only the values are read
        if node.op == "TopK" and _fixed_k(network, node) is not None and network.readers.get(node.outputs[1])
    ]
    taker = _taker(network, fused, plain, stops)
    if taker is not None:
        fused = []
    if len(fused) + len(plain) != 1:
        return (
            f"{len(fused) + len(plain)} operators choose experts (TopK with a fixed k, MoE, QMoE) between "
            f"{block.merged!r} and {block.exit!r}, one is needed"
        )
    places: tuple[Place, ...] = ()
    problem: str | None = None
    if fused:
        node = fused[0]
        found = _follow_all(network, cone, dict(values)).get(node.inputs[1], NOTHING).shape
        experts = found[-1] if found else (network.dims(node.inputs[2]) or (None,))[0]
        k = node.whole("k", 1)
    else:
        node, k = plain[0], _fixed_k(network, plain[0]) or 0
        search = _Search(network, cone, node, k, block.exit, values)
        chosen = _decide(search, k)
        experts = search.experts
        if isinstance(chosen, str):
            problem = chosen
        else:
            order = {member: n for n, member in enumerate(cone)}
            places = ((node, 1, 0), *sorted(chosen, key=lambda place: (order[place[0]], *place[1:])))
    if experts is None:
        return f"the number of experts that {node.op} chooses from is not known"
    if not 1 <= k <= experts:
        return f"{node.op} chooses {k} of {experts} experts"
    return Router(node, k, experts, block.exit, cone, places, problem, taker)


def _taker(network: Network, fused: Sequence[Node], plain: Sequence[Node], stops: dict[str, Known]) -> Node | None:
    """The one fused operator whose logits follow from the choice of the one TopK, if it is so and both have one k."""
    if len(fused) != 1 or len(plain) != 1 or plain[0] not in network.cone(fused[0].inputs[1], stops):
        return None
    return fused[0] if fused[0].whole("k", 1) == _fixed_k(network, plain[0]) else None


def _fixed_k(network: Network, node: Node) -> int | None:
    """The k of a TopK over something computed; a sort's is computed itself."""
    k = network.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return int(k.ravel()[0]) if k is not None and k.size == 1 and k.dtype.kind == "i" else None


class _Search:
    """All ways to read the constants of one block, given that its router's TopK takes a large prime."""

    def __init__(
        self, network: Network, cone: Sequence[Node], router: Node, k: int, exit: str, values: dict[str, Known]
    ) -> None:
        self.network, self.cone, self.router, self.k, self.exit, self.values = network, cone, router, k, exit, values
        self.wanted = values[exit].shape
        self.experts: int | None = None
        self._steps = 0
        self._known: dict[str, Known] = {}
        self._places = {node: found for node in cone if (found := self._possible(node))}

    def run(self) -> Iterator[frozenset[Place]]:
        """Every consistent set of places that are k."""
        return self._from(0, dict(self.values), frozenset())

    def _from(self, start: int, values: dict[str, Known], chosen: frozenset[Place]) -> Iterator[frozenset[Place]]:
        for at in range(start, len(self.cone)):
            node = self.cone[at]
            given = [self._value(name, values) for name in node.inputs]
            self._step()
            if node is self.router:
                shape = given[0].shape
                axis = node.whole("axis", -1)
                self.experts = shape[axis] if shape and -len(shape) <= axis < len(shape) else None
                given[1] = Known((1,), (TOP_K,))
            places = self._places.get(node)
            if places is None:
                try:
                    results = follow(node, given)
                except MisfitError:
                    return
                values.update(zip(node.outputs, results, strict=True))
                continue
            for picks in product((True, False), repeat=len(places)):
                self._step()
                picked = frozenset(place for place, pick in zip(places, picks, strict=True) if pick)
                try:
                    results = follow(node, _replaced(given, picked))
                except MisfitError:
                    continue
                further = {**values, **dict(zip(node.outputs, results, strict=True))}
                yield from self._from(at + 1, further, chosen | picked)
            return
        if self._fits(values):
            yield chosen

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise OverflowError

    def _fits(self, values: dict[str, Known]) -> bool:
        return self.wanted is not None and values[self.exit].shape == self.wanted

    def _value(self, name: str, values: dict[str, Known]) -> Known:
        return values.get(name) or _constant(self.network, name, self._known)

    def _possible(self, node: Node) -> list[Place]:
        inputs = range(len(node.inputs)) if node.op in (*ARITHMETIC, "Concat") else _PLACES.get(node.op, ())
        found: list[Place] = []
        for at in inputs or ():
            value = self.network.constant(node.inputs[at]) if at < len(node.inputs) else None
            if (
                value is None
                or value.dtype.kind != "i"
                or value.ndim > 1
                or (node.op in ARITHMETIC and value.size != 1)
            ):
                continue
            found += [(node, at, int(n)) for n in np.flatnonzero(value.ravel() == self.k)]
        return found


def _replaced(given: Sequence[Known], picked: frozenset[Place]) -> list[Known]:
    changed = list(given)
    for _, at, position in picked:
        numbers = list(changed[at].numbers or ())
        numbers[position] = TOP_K
        changed[at] = changed[at]._replace(numbers=tuple(numbers), bound=None)
    return changed


def _decide(search: _Search, k: int) -> frozenset[Place] | str:
    """The one reading, or why there are several.

    A floor division of slot numbers comes with corrections for negative ones, which never apply, so that nothing
    depends on them: where such a divisor is the same constant as one that is known to be k, it is k too.
    """
    try:
        solutions = list(search.run())
    except (OverflowError, RecursionError):
        return f"too many constants could be k={k}"
    if not solutions:
        return f"no choice of the constants that equal k={k} lets all sizes fit"
    certain = frozenset.intersection(*solutions)
    names = {node.inputs[at] for node, at, _ in certain if node.op in ARITHMETIC}
    open_places = frozenset.union(*solutions) - certain
    for node, at, _ in open_places:
        if node.op not in ARITHMETIC or node.inputs[at] not in names:
            return f"whether the constant {node.inputs[at]!r} of {node.op} is k or only equals it is not decidable"
    chosen = certain | open_places
    return chosen if chosen in solutions else "the constants that may be k exclude each other"


def _rewrite(
    network: Network,
    router: Router,
    k: int,
    copies: dict[tuple[Node, tuple[str, ...]], Node],
) -> None:
    """Change the constants of one block. What other blocks read as well, such as a count of slots, is copied first."""
    places: dict[Node, list[tuple[int, int]]] = {}
    for node, at, position in router.places:
        places.setdefault(node, []).append((at, position))
    touched: set[Node] = set()
    reached: set[str] = set()
    for node in router.cone:
        if node in places or any(name in reached for name in node.reads):
            touched.add(node)
            reached.update(name for name in node.outputs if name and name != router.exit)
    network.stale |= reached
    shared = _shared(network, router, touched)
    renamed: dict[str, str] = {}
    for node in router.cone:
        if node not in touched:
            continue
        inputs = [renamed.get(name, name) for name in node.inputs]
        for at in {at for at, _ in places.get(node, ())}:
            value = network.constant(node.inputs[at])
            assert value is not None
            changed = value.copy()
            for where, position in places[node]:
                if where == at:
                    changed.ravel()[position] = k
            inputs[at] = network.add_constant(changed)
        if node not in shared:
            node.rename(renamed)
            node.inputs = inputs
            continue
        key = (node, tuple(inputs))
        if key not in copies:
            copies[key] = network.copy_node(node, inputs)
            copies[key].rename(renamed)
        renamed.update(zip(node.outputs, copies[key].outputs, strict=True))


def _shared(network: Network, router: Router, touched: set[Node]) -> set[Node]:
    """Of the nodes to be changed, those that something else reads, directly or through others of them."""
    exposed = {value.name for value in network.outputs}
    found: set[Node] = set()
    for node in reversed(router.cone):
        if node in touched:
            for name in node.outputs:
                readers = network.readers.get(name, ()) if name != router.exit else ()
                if name in exposed or any(reader in found or reader not in touched for reader in readers):
                    found.add(node)
    return found


def _constant(network: Network, name: str, known: dict[str, Known]) -> Known:
    if name not in known:
        value = network.constant(name) if name else None
        dims = network.dims(name) if name else None
        known[name] = of_constant(value) if value is not None else Known(dims) if dims is not None else NOTHING
    return known[name]


def _follow_all(network: Network, nodes: Sequence[Node], values: dict[str, Known]) -> dict[str, Known]:
    constants: dict[str, Known] = {}
    for node in nodes:
        given = [values.get(name) or _constant(network, name, constants) for name in node.inputs]
        try:
            results = follow(node, given)
        except MisfitError:
            results = [NOTHING] * len(node.outputs)
        values.update(zip(node.outputs, results, strict=True))
    return values


def _inputs(network: Network, tokens: str) -> dict[str, Known]:
    """Sample shapes of the graph's inputs. A size without a number is the batch in front, else named by its symbol."""
    symbols: dict[str, int] = {}
    primes = iter((PAST, OTHER, 10067, 10069, 10079, 10091, 10093, 10099))

    def size(at: int, dim: Any, name: str) -> int | None:
        if dim.dim_value:
            return int(dim.dim_value)
        if dim.dim_param.isdecimal():  # as transformers' exporter writes fixed sizes of inputs
            return int(dim.dim_param)
        if at == 0:
            return BATCH
        if at == 1 and name == tokens:
            return SEQUENCE
        return symbols.setdefault(dim.dim_param, next(primes, 0)) or None

    found = {}
    for value in network.inputs:
        dims = value.type.tensor_type.shape.dim
        found[value.name] = Known(tuple(size(at, dim, value.name) for at, dim in enumerate(dims)))
    return found
