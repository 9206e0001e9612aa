"""A family's members where the model doesn't fit into memory: one block at a time, with every k that members give it.

Each block that members use is loaded once, alone, from the family's own weights; its one-block graph must equal PyTorch
for each of its k, and another k must not. A member's graph must then be, byte for byte, what the same code emits for
the member's blocks and k. What is left open is the sum of float32 rounding over all blocks, as in `blockwise.py`.
"""

from typing import NamedTuple

from export.files.provenance import Provenance
from export.files.verification import OtherK, Verification
from export.gate.blockwise import keep_largest, one_block_graphs
from export.gate.compare import find_probe, onnx_vs_torch, other_k
from export.run.family_file import Family, Member
from transform.checkpoint import Checkpoint
from transform.depth import drop_blocks, view_blocks
from transform.errors import VerificationError
from transform.forms import Form
from transform.load import load_view
from transform.machine import release_memory, return_at_once
from transform.progress import Say
from transform.runtime import moe_top_k
from transform.top_k import set_top_k


class Pair(NamedTuple):
    """One block, as an index of the family's weights, with one k."""

    block: int
    k: int


Measured = tuple[dict[str, float], OtherK]  # differences of a pair's graph from PyTorch, and what another k makes


def prove_members_blockwise(
    family: Family, written: Checkpoint, provenance: Provenance | None, say: Say
) -> list[Verification]:
    """What was measured per member, in their order; raises VerificationError for the first that isn't what it says."""
    for member in family.members:
        say(f"{member.name}: bytes of its graph")
        check_emission(written, family.form, member, provenance)
    pairs = {pair for member in family.members for pair in _pairs(member)}
    measured = measure_pairs(written, family.form, pairs, say)
    return [_of_member(member, measured) for member in family.members]


def check_emission(written: Checkpoint, form: Form, member: Member, provenance: Provenance | None) -> None:
    """A member's graph file must be what is emitted for its blocks and k over the weights that were `written`, and say
    of itself what follows from the family's `provenance`."""
    from export.graph.decoder import text_graph

    target = set_top_k(drop_blocks(written, member.blocks_kept), member.top_k)
    graph = text_graph(target, form)
    if provenance is not None:
        graph.notes = provenance.of_member(member.blocks_kept, member.top_k).of(member.graph)
    if graph.serialised() != (written.path / member.graph).read_bytes():
        raise VerificationError(
            f"member {member.name}: {member.graph} must hold the bytes that are emitted for blocks "
            f"{list(member.blocks_kept)} with k={list(member.top_k)}; it holds others. It was changed, or written by "
            "another version: export the family again."
        )


def measure_pairs(written: Checkpoint, form: Form, pairs: set[Pair], say: Say) -> dict[Pair, Measured]:
    """What was measured of each pair; each block is loaded once."""
    return_at_once()
    found: dict[Pair, Measured] = {}
    for block in sorted({pair.block for pair in pairs}):
        own = view_blocks(written, (block,))
        model, _ = load_view(own, pictures=False)
        for pair in sorted(pair for pair in pairs if pair.block == block):
            say(f"block {block}, k={pair.k}: ONNX == PyTorch")
            view = set_top_k(own, pair.k)
            try:
                with moe_top_k(model, pair.k):
                    probe = find_probe(model, view)
                    compared = onnx_vs_torch(model, one_block_graphs(view, written.path, form), probe)
                    found[pair] = compared, other_k(model, view, probe)
            except VerificationError as error:
                raise VerificationError(f"block {block}, k={pair.k}: {error}") from error
        del model
        release_memory()
    return found


def _pairs(member: Member) -> list[Pair]:
    return [Pair(block, k) for block, k in zip(member.blocks_kept, member.top_k, strict=True)]


def _of_member(member: Member, measured: dict[Pair, Measured]) -> Verification:
    """The largest difference over the member's pairs, and the least that another k made."""
    worst: dict[str, float] = {}
    others: list[OtherK] = []
    for pair in _pairs(member):
        compared, other = measured[pair]
        keep_largest(worst, compared)
        others.append(other)
    changes = [other["difference"] for other in others if other["difference"] is not None]
    k = [other["k"][0] for other in others if other["k"]]
    least: OtherK = {"k": k or None, "difference": min(changes, default=None)}
    return Verification(mode="blockwise", blocks=len(others), onnx_vs_torch=worst, other_k=least)
