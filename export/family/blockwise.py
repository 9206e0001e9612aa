"""A family's members where the model doesn't fit into memory: one block at a time, with every k that members give it.

Each block that members use is loaded once, alone, from the family's own weights; its one-block graph must equal PyTorch
for each of its k, and another k must not. A member's graph must then be, byte for byte, what the same code emits for
the member's blocks and k. What is left open is the sum of float32 rounding over all blocks, as in `blockwise.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from export.gate.blockwise import keep_largest, one_block_graphs
from export.gate.compare import find_probe, onnx_vs_torch, other_k
from transform.checkpoint import Checkpoint
from transform.depth import drop_blocks
from transform.errors import VerificationError
from transform.forms import Form
from transform.load import load_view
from transform.machine import release_memory
from transform.progress import Say
from transform.read import read_checkpoint
from transform.runtime import moe_top_k
from transform.strict_json import Record
from transform.top_k import set_top_k


class Pair(NamedTuple):
    """One block, as an index of the family's weights, with one k."""

    block: int
    k: int


def verify_members_blockwise(directory: Path, form: Form, entries: Sequence[Record], say: Say) -> list[Record]:
    """What was measured per member, in their order; raises VerificationError for the first that isn't what it says."""
    written = read_checkpoint(directory)
    for entry in entries:
        say(f"{entry['name']}: bytes of its graph")
        check_emission(written, directory, form, entry)
    measured = measure_pairs(written, directory, form, {pair for entry in entries for pair in _pairs(entry)}, say)
    return [_of_member(entry, measured) for entry in entries]


def check_emission(written: Checkpoint, directory: Path, form: Form, entry: Record) -> None:
    """A member's graph file must be what is emitted for its blocks and k over the weights of `directory`."""
    from export.graph.decoder import text_graph

    member = set_top_k(drop_blocks(written, entry["blocks_kept"]), entry["top_k"])
    if text_graph(member, form).serialised() != (directory / entry["graph"]).read_bytes():
        raise VerificationError(
            f"member {entry['name']}: {entry['graph']} must hold the bytes that are emitted for blocks "
            f"{entry['blocks_kept']} with k={entry['top_k']}; it holds others. It was changed, or written by another "
            "version: export the family again."
        )


def measure_pairs(
    written: Checkpoint, directory: Path, form: Form, pairs: set[Pair], say: Say
) -> dict[Pair, tuple[Record, Record]]:
    """{pair: (differences of its graph from PyTorch, result with another k)}; each block is loaded once."""
    found: dict[Pair, tuple[Record, Record]] = {}
    for block in sorted({pair.block for pair in pairs}):
        own = drop_blocks(written, (block,))
        model, _ = load_view(own)
        for pair in sorted(pair for pair in pairs if pair.block == block):
            say(f"block {block}, k={pair.k}: ONNX == PyTorch")
            view = set_top_k(own, pair.k)
            try:
                with moe_top_k(model, pair.k):
                    probe = find_probe(model, view)
                    compared = onnx_vs_torch(model, one_block_graphs(view, directory, form), probe)
                    found[pair] = compared, other_k(model, view, probe)
            except VerificationError as error:
                raise VerificationError(f"block {block}, k={pair.k}: {error}") from error
        del model
        release_memory()
    return found


def _pairs(entry: Record) -> list[Pair]:
    return [Pair(block, k) for block, k in zip(entry["blocks_kept"], entry["top_k"], strict=True)]


def _of_member(entry: Record, measured: dict[Pair, tuple[Record, Record]]) -> Record:
    """The largest difference over the member's pairs, and the least that another k made."""
    worst: dict[str, float] = {}
    others: list[Record] = []
    for pair in _pairs(entry):
        compared, other = measured[pair]
        keep_largest(worst, compared)
        others.append(other)
    changes = [other["difference"] for other in others if other["difference"] is not None]
    k = [other["k"][0] for other in others if other["k"]]
    return {
        "mode": "blockwise",
        "blocks": len(others),
        "onnx_vs_torch": worst,
        "other_k": {"k": k or None, "difference": min(changes, default=None)},
    }
