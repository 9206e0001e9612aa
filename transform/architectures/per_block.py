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


def check_block_lists(config: Mapping[str, object], layers: int) -> None:
    """Raise CheckpointError for a list of the config that has one value per block, and another length."""
    for key in PER_BLOCK:
        values = config.get(key)
        if isinstance(values, list) and len(values) != layers:
            raise CheckpointError(
                f"config.json: {key} must list one value per block, it has {len(values)} for {layers} blocks. "
                "Restore the original config.json."
            )


def select_blocks(config: Mapping[str, object], depth_key: str, keep_blocks: Sequence[int]) -> dict[str, object]:
    """The config of these blocks alone: their number, and of each list per block their values."""
    found = dict(config) | {depth_key: len(keep_blocks)}
    for key in PER_BLOCK:
        values = config.get(key)
        if isinstance(values, list):
            found[key] = [values[i] for i in keep_blocks]
    return found
