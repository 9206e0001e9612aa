"""`SkipSimplifiedLayerNormalization` adds to the residual stream and norms the sum in one operator.

Taken apart before blocks are removed, so that the stream is a chain of plain sums, and put together again after.
"""

from export.derive.graph import Network, Node

FUSED = "SkipSimplifiedLayerNormalization"


def split_fused(network: Network) -> dict[str, Node]:
    """Replace every fused node by a sum and a norm; returns {name of the normed value: the fused node}."""
    fused: dict[str, Node] = {}
    nodes: list[Node] = []
    for node in network.nodes:
        inputs = node.inputs
        # a bias (input 3) or statistics asked for (outputs 1, 2) don't occur in decoders: left as they are
        if node.op != FUSED or len(inputs) != 3 or any(network.readers.get(name) for name in node.outputs[1:3]):
            nodes.append(node)
            continue
        total = node.outputs[3] if len(node.outputs) > 3 and node.outputs[3] else network.fresh(f"{inputs[0]}_sum")
        node.outputs = [node.outputs[0], "", "", total]
        fused[node.outputs[0]] = node
        nodes.append(network.new_node("Add", inputs[:2], [total]))
        norm = network.new_node(
            "SimplifiedLayerNormalization",
            [total, inputs[2]],
            node.outputs[:1],
            axis=-1,
            epsilon=node.attribute("epsilon", 1e-5),
            stash_type=1,
        )
        nodes.append(norm)
    if fused:
        network.nodes = nodes
        network.index()
    return fused


def join_fused(network: Network, fused: dict[str, Node]) -> None:
    """Put each norm together again with the sum that it now follows. A norm right behind the embedding stays alone."""
    if not fused:
        return
    totals = {node.outputs[3] for node in fused.values()}
    sums = {node.outputs[0]: node for node in network.nodes if node.op == "Add" and node.outputs[0] in totals}
    joined: dict[Node, Node] = {}
    gone: set[Node] = set()
    for node in network.nodes:
        before = fused.get(node.outputs[0])
        total = sums.pop(node.inputs[0], None) if before is not None else None
        if before is None or total is None:
            continue
        before.inputs = [*total.inputs, node.inputs[1]]
        before.outputs = [node.outputs[0], "", "", total.outputs[0]]
        joined[total] = before
        gone.add(node)
    network.nodes = [joined.get(node, node) for node in network.nodes if node not in gone]
    network.index()
