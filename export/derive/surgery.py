"""Another k and fewer blocks for a graph in memory. No file is read or written, no weight is touched."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from export.derive.blocks import Decoder, find_blocks, remove_blocks
from export.derive.fusion import join_fused, split_fused
from export.derive.graph import Network, Node
from export.derive.separate import separate_sizes
from export.derive.topk import Router, find_routers, mask_ranks, set_top_k
from importance.choose import choose_blocks
from transform.errors import CheckpointError, KnobError
from transform.knobs import spelt_k


@dataclass(frozen=True)
class Opened:
    """A graph taken apart, perhaps with fewer blocks."""

    network: Network
    decoder: Decoder
    routers: list[Router | str | None]
    fused: dict[str, Node]
    total: int  # blocks before
    keep_blocks: tuple[int, ...]

    @property
    def top_k(self) -> tuple[int, ...] | None:
        """k per block, 0 where it has no experts; None where some block has no router that could be read."""
        found = tuple(router.k if router else 0 for router in self.routers if not isinstance(router, str))
        return found if len(found) == len(self.routers) else None

    def close(self) -> Any:
        """The finished model."""
        join_fused(self.network, self.fused)
        return self.network.finish()


@dataclass(frozen=True)
class Surgery:
    """What was done, and the graph it gave."""

    model: Any
    total: int
    keep_blocks: tuple[int, ...]
    before: tuple[int, ...] | None  # k of the kept blocks; None where it isn't known, and then it wasn't changed
    top_k: tuple[int, ...] | None
    nodes: int


def open_graph(model: Any, keep: Sequence[int] | None = None, drop: Sequence[int] | None = None) -> Opened:
    """Find a graph's blocks and routers, after leaving only the blocks `keep`, or all but `drop`. Changes `model`."""
    network = Network(model)
    fused = split_fused(network)
    decoder = find_blocks(network)
    total = len(decoder.blocks)
    keep_blocks = choose_blocks(total, keep=keep, drop=drop)
    separate_sizes(network, decoder)
    if len(keep_blocks) < total:
        decoder = remove_blocks(network, decoder, keep_blocks)
    return Opened(network, decoder, find_routers(network, decoder), fused, total, keep_blocks)


def operate(
    model: Any,
    k: int | Sequence[int] | None = None,
    keep: Sequence[int] | None = None,
    drop: Sequence[int] | None = None,
) -> Surgery:
    """`k` experts per token (or one k per kept block) and only some blocks; `model` is changed, also by a refusal.

    Raises KnobError for a setting the graph can't have, CheckpointError where its parts can't be told.
    """
    if k is None and keep is None and drop is None:
        raise KnobError("nothing was asked for: give --k, --drop-blocks or --keep-blocks.")
    opened = open_graph(model, keep, drop)
    before, kept = opened.top_k, len(opened.keep_blocks)
    if k is None:
        top_k = before
    else:
        top_k = (k,) * kept if isinstance(k, int) else tuple(k)
        if len(top_k) != kept:
            raise KnobError(
                f"per-block k must give one value per kept block: {len(top_k)} values, {kept} blocks kept. "
                f"Give {kept} values, or one for all."
            )
        top_k = tuple(0 if router is None else value for router, value in zip(opened.routers, top_k, strict=True))
    if top_k == before and kept == opened.total:
        raise KnobError(
            f"the setting must differ from the graph's: k {'as it is' if before is None else spelt_k(before)} and all "
            f"{kept} blocks are what it has. Change one of them, or use the graph as it is."
        )
    if k is not None:
        assert top_k is not None
        set_top_k(opened.network, opened.routers, top_k)
    finished = opened.close()
    return Surgery(finished, opened.total, opened.keep_blocks, before, top_k, len(finished.graph.node))


def with_masked_ranks(model: Any, keep_blocks: Sequence[int], ks: Sequence[int]) -> Any:
    """The graph with the blocks `keep_blocks`, in which only the best `ks[i]` of the experts chosen by block i count.

    Raises CheckpointError where there is nothing between the choice and the sum that could be masked.
    """
    opened = open_graph(model, keep_blocks)
    found = [(router, k) for router, k in zip(opened.routers, ks, strict=True) if router is not None]
    routers = [router for router, _ in found if not isinstance(router, str) and not router.fused]
    if len(routers) < len(found):
        raise CheckpointError("one operator chooses the experts and adds them up")
    mask_ranks(opened.network, routers, [k for _, k in found])
    return opened.close()
