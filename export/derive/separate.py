"""Give every block the sizes of its own values.

Optimizers compute equal sizes once: how many slots block 5 sorts may then be taken from a value of block 0, which
would keep half of block 0 alive after it was dropped, and its k in force. Such a size is computed again from the value
at the same place in the block that needs it. Places correspond where two blocks, walked from their ends, are alike.
"""

from collections.abc import Callable, Container

from export.derive.blocks import Block, Decoder
from export.derive.graph import Network, Node
from export.derive.residual import SHAPE_ONLY, tags


def separate_sizes(network: Network, decoder: Decoder) -> None:
    """Rewrite the graph so that no block takes a size from another one, as far as places correspond."""
    first, last = (decoder.stream.index(name) for name in (decoder.blocks[0].entry, decoder.blocks[-1].exit))
    stops = dict.fromkeys(decoder.stream[first : last + 1])
    depth = {name: 1 << n for n, name in enumerate(decoder.stream)}
    owner: dict[int, Block] = {}
    for block in decoder.blocks:
        begin, end = decoder.stream.index(block.entry), decoder.stream.index(block.exit)
        owner.update(dict.fromkeys(range(begin, end), block))
    latest = tags(network, {name: depth[name] for name in stops})

    def block_of(name: str) -> Block | None:
        return owner.get(latest.get(name, 0).bit_length() - 1)

    added: list[Node] = []
    for block in decoder.blocks:
        ends = (block.exit, block.merged, *block.present)
        cone = list(dict.fromkeys(node for end in ends for node in network.cone(end, stops)))
        foreign = [node for node in cone if node.op in SHAPE_ONLY and block_of(node.inputs[0]) not in (None, block)]
        if foreign:
            twins: dict[str, str] = {}
            for other in {block_of(node.inputs[0]) for node in foreign}:
                assert other is not None
                twins |= _twins(network, other, block, stops)
            added += _own_sizes(network, [n for n in cone if _is_shared(n, block, block_of)], foreign, twins, cone)
    if added:
        network.nodes += added
        network.sort()


def _is_shared(node: Node, block: Block, block_of: Callable[[str], Block | None]) -> bool:
    """Whether a node of a block's cone isn't the block's own."""
    return all(block_of(name) is not block for name in node.outputs if name)


def _own_sizes(
    network: Network, shared: list[Node], foreign: list[Node], twins: dict[str, str], cone: list[Node]
) -> list[Node]:
    """Copies of what follows from foreign sizes, from the block's own values; the block's nodes read the copies."""
    renamed: dict[str, str] = {}
    copies = []
    for node in shared:
        if node in foreign:
            if node.inputs[0] not in twins:
                continue
            inputs = [twins[node.inputs[0]]]
        elif any(name in renamed for name in node.inputs):
            inputs = [renamed.get(name, name) for name in node.inputs]
        else:
            continue
        copy = network.copy_node(node, inputs)
        renamed.update(zip(node.outputs, copy.outputs, strict=True))
        copies.append(copy)
    skipped = set(shared)
    for node in cone:
        if node not in skipped:
            node.rename(renamed)
    return copies


def _twins(network: Network, one: Block, other: Block, stops: Container[str]) -> dict[str, str]:
    """Value of `one` -> the value at the same place in `other`."""
    found = {one.entry: other.entry, one.merged: other.merged}
    pairs = [(one.exit, other.exit), (one.merged, other.merged), *zip(one.present, other.present, strict=True)]
    ends = set(pairs)
    seen: set[tuple[str, str]] = set()
    while pairs:
        pair = pairs.pop()
        a, b = pair
        if a == b or pair in seen or ((a in stops or b in stops) and pair not in ends):
            continue
        seen.add(pair)
        ours, theirs = network.maker.get(a), network.maker.get(b)
        if ours is None or theirs is None or ours.op != theirs.op or len(ours.inputs) != len(theirs.inputs):
            continue
        if ours.outputs.index(a) == theirs.outputs.index(b):
            found.setdefault(a, b)
            pairs.extend(zip(ours.inputs, theirs.inputs, strict=True))
    return found
