"""A derived graph in a knobcast variant against the directory's own model in PyTorch, same k and blocks at run time."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.derive.graph import Network, Node
from export.derive.surgery import Opened, Surgery


def against_torch(staged: Path, opened: Opened, surgery: Surgery) -> dict[str, float] | str:
    """The graph against the directory's own model in PyTorch, or why not; quantised weights are dequantised there."""
    directory = staged.parent
    if not all((directory / name).is_file() for name in ("io.json", "config.json")):
        return "not compared with PyTorch: the directory is no knobcast variant"
    from transform.load import quiet_transformers
    from transform.machine import FLOAT32, free_memory
    from transform.read import read_checkpoint
    from transform.sizes import parameters

    checkpoint = read_checkpoint(directory)
    keep_blocks = _blocks_of(opened, checkpoint)
    if keep_blocks is None or surgery.top_k is None:
        return "not compared with PyTorch: which blocks of config.json the graph has is not known"
    needed, free = parameters(checkpoint) * FLOAT32, free_memory()
    if needed > free / 3:
        return f"not compared with PyTorch: the model takes {needed:,} bytes, {free:,} are free"
    from export.gate.checking import checking_graphs
    from export.gate.compare import find_probe, onnx_vs_torch
    from transform.depth import drop_blocks
    from transform.load import align, load_model
    from transform.runtime import knobs_at_run_time

    quiet_transformers()
    model = align(load_model(directory))
    with knobs_at_run_time(model, keep_blocks, surgery.top_k):
        probe = find_probe(model, drop_blocks(checkpoint, keep_blocks))
        return {"probe_seed": probe.seed, **onnx_vs_torch(model, checking_graphs(directory, text=staged.name), probe)}


def _blocks_of(opened: Opened, checkpoint: Any) -> list[int] | None:
    """The checkpoint's block behind each block of the graph, by the places of its weights; None where unclear."""
    before, _, after = checkpoint.architecture.block.partition("{i}")
    numbered = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    block_at = {
        (part.file.name, part.start): int(match[1])
        for name, tensor in checkpoint.tensors.items()
        if (match := numbered.match(name))
        for part in (tensor if tensor.pack is None else tensor.pack.codes,)
    }
    network, stops = opened.network, set(opened.decoder.stream)
    found: list[int] = []
    for block in opened.decoder.blocks:
        nodes = [*network.cone(block.exit, stops), *network.cone(block.merged, stops)]
        numbers = {block_at[place] for place in _places(network, nodes) if place in block_at}
        if len(numbers) != 1:
            return None
        found += numbers
    return found if found == sorted(set(found)) else None


def _places(network: Network, nodes: Sequence[Node]) -> set[tuple[str, int]]:
    """(file, offset) of the weights that nodes read."""
    found = set()
    for name in {name for node in nodes for name in node.reads}:
        proto = network.initializers.get(name)
        entry = {item.key: item.value for item in proto.external_data} if proto is not None else {}
        if "location" in entry:
            found.add((entry["location"], int(entry.get("offset", 0))))
    return found
