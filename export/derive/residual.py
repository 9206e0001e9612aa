"""The residual stream of a decoder: the values that lie on every way from the tokens to the logits.

Each of them goes both into a norm and around it, so nothing between two of them can be on every way. A value is on
all ways where (ways from the tokens to it) x (ways from it to the logits) = all ways: counted, exactly.
What only takes a shape (`Shape`, `Size`) carries no data.
"""

from collections.abc import Mapping

from export.derive.graph import Network

SHAPE_ONLY = ("Shape", "Size")


def stream(network: Network, source: str, sink: str) -> list[str]:
    """The values on every way from `source` to `sink`, in order; empty where there is no way."""
    data = [node for node in network.nodes if node.op not in SHAPE_ONLY]
    ahead = {source: 1}
    for node in data:
        count = 0
        for name in node.reads:
            if name in ahead:
                count += ahead[name]
        if count:
            ahead.update((name, count) for name in node.outputs if name)
    total = ahead.get(sink, 0)
    behind = {sink: 1}
    for node in reversed(data):
        count = 0
        for name in node.outputs:
            if name in behind:
                count += behind[name]
        if count:
            for name in node.reads:
                behind[name] = behind.get(name, 0) + count
    return [name for name, count in ahead.items() if total and count * behind.get(name, 0) == total]


def tags(network: Network, given: Mapping[str, int]) -> dict[str, int]:
    """Bit sets carried along with the data: which of the `given` inputs every value depends on."""
    found = dict(given)
    for node in network.nodes:
        if node.op not in SHAPE_ONLY:
            bits = 0
            for name in node.reads:
                bits |= found.get(name, 0)
            if bits:
                for name in node.outputs:
                    found[name] = found.get(name, 0) | bits
    return found
