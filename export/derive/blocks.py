"""Find the blocks of a decoder graph by its structure, and remove some.

The residual stream (`residual.py`) is cut where the cache of the next block first shows in it: block i turns the
stream's value `entry` into `exit`. Removing it makes everyone who read `exit` read `entry`; what nobody needs any
more is dead. Nodes that blocks share (mask, angles, sizes taken from some block's cache) live as long as one does.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from export.derive.graph import Network
from export.derive.residual import SHAPE_ONLY, stream, tags
from transform.errors import CheckpointError

_NUMBERED = re.compile(r"(\D*)(\d+)(\D*)")
WAY_OUT = "derive works on decoder graphs with a cache; export this model again with the setting instead."


@dataclass(frozen=True)
class Block:
    """`entry` -> `merged` (the first value of the stream that knows the block's cache) -> `exit`."""

    entry: str
    merged: str
    exit: str
    cache: tuple[str, ...]  # inputs
    present: tuple[str, ...]  # outputs


@dataclass(frozen=True)
class Decoder:
    """A graph's blocks, and where its stream begins and ends."""

    tokens: str
    logits: str
    stream: tuple[str, ...]
    blocks: tuple[Block, ...]


def find_blocks(network: Network) -> Decoder:
    """The decoder in a graph; raises CheckpointError with what is missing."""
    inputs, outputs = [v.name for v in network.inputs], [v.name for v in network.outputs]
    cache = _numbered(inputs)
    if not cache:
        raise CheckpointError(
            f"a decoder graph has cache inputs numbered from 0, one or more per block; the inputs are {_few(inputs)}. "
            f"{WAY_OUT}"
        )
    present = _numbered(outputs)
    if len(present) != len(cache):
        raise CheckpointError(
            f"every block has cache inputs and outputs: {len(cache)} blocks have inputs, {len(present)} outputs. "
            f"{WAY_OUT}"
        )
    cached = {name for names in (*cache, *present) for name in names}
    sinks = [name for name in outputs if name not in cached]
    sink = "logits" if "logits" in sinks else sinks[0] if len(sinks) == 1 else None
    if sink is None:
        raise CheckpointError(f"a decoder graph has the output logits, or one beside its cache; got {_few(sinks)}.")
    bits = tags(network, {name: 1 << i for i, names in enumerate(cache) for name in names})
    source = ""
    chain: list[str] = []
    at: list[int] = []
    for name in (name for name in inputs if name not in cached):
        ways = stream(network, name, sink)
        places = _places(network, ways, bits, len(cache))
        if places and len(ways) > len(chain):
            source, chain, at = name, ways, places
    if not at:
        raise CheckpointError(
            f"each of the {len(cache)} blocks must add to one residual stream, in the order of their caches; no input "
            f"has ways to {sink!r} that lead through all of them one after another. {WAY_OUT}"
        )
    _check_outputs(present, bits)
    entries = [chain[n - 1] for n in at]
    exits = [*entries[1:], _last_sum(network, chain, source, at)]
    blocks = zip(entries, (chain[n] for n in at), exits, cache, present, strict=True)
    return Decoder(source, sink, tuple(chain), tuple(Block(*block) for block in blocks))


def remove_blocks(network: Network, decoder: Decoder, keep_blocks: Sequence[int]) -> Decoder:
    """Leave only the blocks `keep_blocks` in the graph, their caches numbered from 0; dead nodes and weights go too."""
    blocks, kept = decoder.blocks, set(keep_blocks)
    around: dict[str, str] = {}
    for i, block in enumerate(blocks):
        if i not in kept:
            around[block.exit] = around.get(block.entry, block.entry)
    for node in network.nodes:
        node.rename(around)
    gone = {name for i, block in enumerate(blocks) if i not in kept for name in block.present}
    network.outputs = [value for value in network.outputs if value.name not in gone]
    network.prune()
    _take_sizes_elsewhere(network, blocks, keep_blocks)
    unused = {name for i, block in enumerate(blocks) if i not in kept for name in block.cache}
    read = sorted(unused & network.readers.keys())
    if read:
        node = network.readers[read[0]][0]
        raise CheckpointError(
            f"a dropped block's cache must not be needed by the others: {node.op} reads {read[0]!r}. {WAY_OUT}"
        )
    network.inputs = [value for value in network.inputs if value.name not in unused]
    renamed = _renumber(
        network, [name for i in keep_blocks for name in (*blocks[i].cache, *blocks[i].present)], keep_blocks
    )
    left = tuple(
        Block(
            around.get(blocks[i].entry, blocks[i].entry),
            blocks[i].merged,
            blocks[i].exit,
            tuple(renamed[name] for name in blocks[i].cache),
            tuple(renamed[name] for name in blocks[i].present),
        )
        for i in keep_blocks
    )
    alive = network.maker.keys() | {value.name for value in network.inputs}
    return Decoder(decoder.tokens, decoder.logits, tuple(v for v in decoder.stream if v in alive), left)


def _take_sizes_elsewhere(network: Network, blocks: Sequence[Block], keep_blocks: Sequence[int]) -> None:
    """Sizes (batch, cached tokens) that were read from a dropped block's cache are read from a kept one's."""
    shapes = {value.name: _dims(value) for value in network.inputs}
    other: dict[str, str] = {}
    for i, block in enumerate(blocks):
        if i not in keep_blocks:
            for name, twin in zip(block.cache, blocks[keep_blocks[0]].cache, strict=True):
                if shapes[name] == shapes[twin]:
                    other[name] = twin
    moved = [node for node in network.nodes if node.op in SHAPE_ONLY and node.inputs[0] in other]
    for node in moved:
        node.rename(other)
    if moved:
        network.index()


def _renumber(network: Network, names: Sequence[str], keep_blocks: Sequence[int]) -> dict[str, str]:
    new = {old: str(position) for position, old in enumerate(keep_blocks)}
    renamed = {}
    for name in names:
        before, number, after = _parts(name)
        renamed[name] = f"{before}{new[int(number)]}{after}"
    for value in (*network.inputs, *network.outputs):
        value.name = renamed.get(value.name, value.name)
    for node in network.nodes:
        node.rename(renamed)
        node.outputs = [renamed.get(name, name) for name in node.outputs]
    network.index()
    return renamed


def _numbered(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Per number, the names that are alike but for it; names without a complete range from 0 are none of these."""
    families: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            families.setdefault((match[1], match[3]), {})[int(match[2])] = name
    complete = [family for family in families.values() if sorted(family) == list(range(len(family)))]
    most = max(map(len, complete), default=0)
    return [tuple(family[i] for family in complete if len(family) == most) for i in range(most)]


def _parts(name: str) -> tuple[str, str, str]:
    match = _NUMBERED.fullmatch(name)
    assert match is not None
    return match[1], match[2], match[3]


def _places(network: Network, ways: Sequence[str], bits: dict[str, int], count: int) -> list[int]:
    """Where each block's cache first shows on the stream; none unless all do, in order, and add to what was there."""
    found = [next((n for n, value in enumerate(ways) if bits.get(value, 0) >> i & 1), 0) for i in range(count)]
    if 0 in found or found != sorted(set(found)):
        return []
    return found if all(ways[n - 1] in network.maker[ways[n]].inputs for n in found) else []


def _check_outputs(present: Sequence[Sequence[str]], bits: dict[str, int]) -> None:
    for i, names in enumerate(present):
        for name in names:
            if bits.get(name, 0).bit_length() != i + 1:
                raise CheckpointError(
                    f"the cache output {name!r} must be made from the cache inputs of its own number, {i}, and no "
                    f"later one. Its number means something else: {WAY_OUT}"
                )


def _last_sum(network: Network, chain: Sequence[str], source: str, at: Sequence[int]) -> str:
    """Where the last block ends: the last sum of two things that both depend on the tokens."""
    reached = tags(network, {source: 1})

    def is_sum(name: str) -> bool:
        node = network.maker.get(name)
        return node is not None and node.op == "Add" and all(name in reached for name in node.inputs)

    found = next((n for n in range(len(chain) - 1, at[-1] - 1, -1) if is_sum(chain[n])), None)
    stretches = {after - before for before, after in pairwise(at)}
    if found is None or (stretches and stretches != {found - at[-1] + 1}):
        raise CheckpointError(
            f"the blocks must be alike, so that the end of the last one is known: their stretches of the residual "
            f"stream have the lengths {sorted(stretches)}. {WAY_OUT}"
        )
    return chain[found]


def _dims(value: Any) -> list[Any]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:6])) + (", …" if len(names) > 6 else "") if names else "none"
