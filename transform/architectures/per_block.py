"""Config keys that speak of single blocks, of all decoders alike: what has to change when blocks do, or their k.

By name, not by length: a list of another kind may be as long as there are blocks.
"""

from collections.abc import Mapping, Sequence

from transform.errors import CheckpointError

# What configs call k; the listed one may hold a value per block, others hold the largest.
TOP_K = ("moe_top_k", "num_experts_per_tok")
LISTED_TOP_K = "moe_top_k"
# Where a list stands under one of these, it has one value per block.
PER_BLOCK = (
    "layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "layer_rope_theta", "indexer_types",
    "moe_topk", "num_attention_heads_per_layer", "attn_type_list", *TOP_K,
)  # fmt: skip


def select_blocks(config: Mapping[str, object], depth_key: str, keep: Sequence[int]) -> dict[str, object]:
    """The config of the blocks `keep` alone: their number, and of each list per block their values.

    Raises CheckpointError for a list that doesn't have one value per block.
    """
    layers = config[depth_key]
    found = dict(config) | {depth_key: len(keep)}
    for key in PER_BLOCK:
        values = config.get(key)
        if isinstance(values, list):
            if len(values) != layers:
                raise CheckpointError(
                    f"config.json: {key} must list one value per block, it has {len(values)} for {layers} blocks. "
                    "Restore the original config.json."
                )
            found[key] = [values[i] for i in keep]
    return found
