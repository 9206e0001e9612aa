"""Config keys that speak of single blocks, of all decoders alike: what has to change when blocks do, or their k.

One table for all families, by name: a list of another kind may be as long as there are blocks, and one that the table
doesn't know is refused. Configs here are those of the text model, wherever it lies (`Architecture.text_of`).
"""

import re
from collections.abc import Mapping, Sequence

from transform.errors import CheckpointError, KnobError

# What configs call k; under the listed ones may stand a value per block, under others the largest.
TOP_K = (
    "moe_top_k", "num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "experts_per_token",
    "num_experts_per_token", "num_selected_experts",
)  # fmt: skip
LISTED_TOP_K = ("moe_top_k", "moe_topk")
# Setting -> what some config calls it: a class of transformers reads one or two of these and passes over the others.
SPELLINGS = {
    "top_k": TOP_K,
    "experts": (
        "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts",
        "num_routed_experts",
    ),
    "eps": ("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
}  # fmt: skip
# Where a list stands under one of these, value i is about block i.
PER_BLOCK = (
    "layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "layer_rope_theta", "indexer_types",
    "num_attention_heads_per_layer", "attn_type_list", "moe_layer_freq", "hybrid_layer_pattern",
    "sparse_attention_freq", "num_shared_expert", *TOP_K,
)  # fmt: skip
# The same where a list has as many values as there are blocks; otherwise they are of other things.
IF_AS_LONG = ("moe_intermediate_size",)
# A text of which letter i is about block i, and the letter of those with experts.
LETTERS, SPARSE_LETTER = "hybrid_override_pattern", "E"
# Numbers of blocks: a list of them, or an object whose keys they are.
NUMBERED = ("mlp_only_layers", "moe_layers", "rope_scaling_layers")
KEYED = ("per_layer_config",)
# How many blocks stand before the first one with experts.
BEFORE_EXPERTS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
STEP, ONLY_DENSE = "decoder_sparse_step", "mlp_only_layers"
FIRST, LAST, INTERVAL = "moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"
PERIODS = (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset"))
SHARED_TAIL = "num_kv_shared_layers"  # so many last blocks attend to keys and values of one before them
ONE_TABLE = "hidden_size_per_layer_input"  # above 0: one tensor holds inputs of all blocks side by side
PREDICTORS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")  # blocks behind the decoder's
# Lists of no block's values that may have any length.
OTHER_LISTS = frozenset((
    "architectures", "eos_token_id", "pad_token_id", "bos_token_id", "time_step_limit", "mtp_layers_block_type",
    "suppress_tokens", "begin_suppress_tokens", "keys_to_ignore_at_inference",
))  # fmt: skip
ROUTED, SPARSE_KINDS = "mlp_layer_types", {"sparse", "moe"}
KINDS = ("layer_types", "layers_block_type", LETTERS)
_SINGLE = str | int | float
# Kinds of blocks that keep no keys and values.
CACHELESS = {"linear_attention", "conv", "mamba", "mlp", "moe", "M", "-", SPARSE_LETTER}


def keys_of_blocks() -> tuple[str, ...]:
    """Every key of the table: those that another choice of blocks may change."""
    periods = (key for pair in PERIODS for key in pair)
    return (
        *PER_BLOCK, *IF_AS_LONG, LETTERS, *NUMBERED, *KEYED, *BEFORE_EXPERTS, STEP, LAST, INTERVAL, *periods,
        SHARED_TAIL, *PREDICTORS,
    )  # fmt: skip


def check_block_lists(text: Mapping[str, object], layers: int) -> None:
    """Raise CheckpointError for a list of the config that has one value per block, and another length."""
    longest = layers + predictors(text)
    for key in (*PER_BLOCK, LETTERS):
        values = text.get(key)
        if isinstance(values, str if key == LETTERS else list) and not layers <= len(values) <= longest:
            raise CheckpointError(
                f"config.json: {key} must list one value per block, it has {len(values)} for {layers} blocks. "
                "Restore the original config.json."
            )


def check_block_entries(text: Mapping[str, object]) -> None:
    """Raise CheckpointError for what says something of blocks by values that can't: no text or number for a block, no
    whole number of one."""
    for key in PER_BLOCK:
        values = text.get(key)
        if isinstance(values, list) and (odd := [v for v in values if v is not None and not isinstance(v, _SINGLE)]):
            raise _entry(key, "lists a text or a number per block", odd[0])
    for key in NUMBERED:
        values = text.get(key)
        if isinstance(values, list) and (odd := [v for v in values if type(v) is not int]):
            raise _entry(key, "lists numbers of blocks", odd[0])
    for key in KEYED:
        by_block = text.get(key)
        if isinstance(by_block, Mapping) and (odd := [v for v in by_block if not re.fullmatch(r"[0-9]{1,6}", v, re.A)]):
            raise _entry(key, "has numbers of blocks as keys", odd[0])


def _entry(key: str, rule: str, found: object) -> CheckpointError:
    return CheckpointError(f"config.json: {key} {rule}, got {found!r:.80}. Restore the original config.json.")


def predictors(text: Mapping[str, object]) -> int:
    """How many blocks behind the decoder's predict further tokens, which transformers doesn't load."""
    found = [value for key in PREDICTORS if type(value := text.get(key)) is int and 0 <= value <= 100]
    return max(found, default=0)


def sparse_blocks(text: Mapping[str, object], layers: int, routed_key: str = ROUTED) -> tuple[bool, ...]:
    """Which blocks have experts, by whatever the config says it with; without a word all have."""
    kinds = text.get(routed_key)
    if isinstance(kinds, list):
        return tuple(kind in SPARSE_KINDS for kind in kinds[:layers])
    letters = text.get(LETTERS)
    if isinstance(letters, str):
        return tuple(letter == SPARSE_LETTER for letter in letters[:layers])
    routed, frequency = text.get("moe_layers"), text.get("moe_layer_freq")
    if isinstance(routed, list):
        return tuple(i in routed for i in range(layers))
    if isinstance(frequency, list):
        return tuple(map(bool, frequency[:layers]))
    return tuple(_is_sparse(text, i, layers) for i in range(layers))


def _is_sparse(text: Mapping[str, object], i: int, layers: int) -> bool:
    dense = text.get(ONLY_DENSE)
    last = _whole(text, LAST, layers - 1)
    return (
        not (isinstance(dense, list) and i in dense)
        and (i + 1) % _whole(text, STEP, 1) == 0
        and all(i >= _whole(text, key, 0) for key in BEFORE_EXPERTS)
        and (last < 0 or i <= last)
        and (i + 1) % _whole(text, INTERVAL, 1) == 0
        and _in_period(text, *PERIODS[1], i)
    )


def _in_period(text: Mapping[str, object], period: str, offset: str, i: int) -> bool:
    return i % _whole(text, period, 1) == _whole(text, offset, 0) if period in text else True


def _whole(text: Mapping[str, object], key: str, default: int) -> int:
    value = text.get(key)
    if value is None:
        return default
    if type(value) is not int or abs(value) > 100_000 or (value < 1 and key in (STEP, INTERVAL, *dict(PERIODS))):
        raise CheckpointError(
            f"config.json: {key} must be a small whole number, got {value!r}. Restore the original config.json."
        )
    return value


def attending(text: Mapping[str, object], layers: int) -> list[int]:
    """The blocks that keep keys and values, by which transformers counts the tokens of a sequence."""
    kinds = next((value for key in KINDS if isinstance(value := text.get(key), list | str)), None)
    if kinds is None:
        return [i for i in range(layers) if _in_period(text, *PERIODS[0], i)]
    return [i for i, kind in enumerate(kinds[:layers]) if str(kind) not in CACHELESS]


def reachable_experts(text: Mapping[str, object], experts: int) -> int:
    """The experts among which a token's k are chosen: of some groups alone, where a router has groups."""
    groups, kept = text.get("n_group"), text.get("topk_group")
    if type(groups) is not int or type(kept) is not int or not 1 <= kept <= groups or experts % groups:
        return experts
    return kept * (experts // groups)


def unknown_lists(text: Mapping[str, object], layers: int, singles: Sequence[str]) -> list[str]:
    """Keys of lists that have a value per block to judge by their length, and that nothing here knows."""
    known = {*PER_BLOCK, *IF_AS_LONG, *NUMBERED, *OTHER_LISTS, *singles}
    return [
        key for key, value in text.items() if isinstance(value, list) and len(value) == layers > 1 and key not in known
    ]


def select_blocks(
    text: Mapping[str, object], depth_key: str, keep_blocks: Sequence[int], routed_key: str = ROUTED
) -> dict[str, object]:
    """The config of these blocks alone: their number, lists of their values, numbers of blocks by their new ones.

    Raises KnobError where the config has no way to say which of them have experts, attend, or share keys.
    """
    layers = depth_of(text, depth_key)
    new = {old: at for at, old in enumerate(keep_blocks)}
    found = dict(text)
    if depth_key in text:
        found[depth_key] = len(keep_blocks)
    if len(keep_blocks) == layers:
        return found
    if _whole(text, ONE_TABLE, 0):
        raise KnobError(
            f"blocks can't be dropped where one tensor holds inputs of all of them, as {ONE_TABLE} {text[ONE_TABLE]} "
            "says. Keep all blocks, and set k alone."
        )
    for key in (*PER_BLOCK, *IF_AS_LONG):
        values = text.get(key)
        if isinstance(values, list) and (key not in IF_AS_LONG or len(values) == layers):
            found[key] = [values[i] for i in keep_blocks]
    letters = text.get(LETTERS)
    if isinstance(letters, str):
        found[LETTERS] = "".join(letters[i] for i in keep_blocks)
    for key in NUMBERED:
        values = text.get(key)
        if isinstance(values, list):
            found[key] = [new[i] for i in values if i in new]  # as transformers compares: a negative one is no block
    for key in KEYED:
        by_block = text.get(key)
        if isinstance(by_block, Mapping):
            found[key] = {str(new[int(i)]): value for i, value in by_block.items() if int(i) in new}
    for key in PREDICTORS:
        if key in text:
            found[key] = 0
    _recount(found, text, layers, keep_blocks)
    _share(found, text, layers, keep_blocks)
    sparse = sparse_blocks(text, layers, routed_key)
    wanted = tuple(sparse[i] for i in keep_blocks)
    if sparse_blocks(found, len(keep_blocks), routed_key) != wanted:
        said = [key for key in (*BEFORE_EXPERTS, STEP, LAST, INTERVAL, PERIODS[1][0]) if key in text]
        raise KnobError(
            f"which blocks have experts must be expressible by {', '.join(said)}: blocks {list(keep_blocks)} would "
            f"need {['experts' if sparse else 'none' for sparse in wanted]}. Keep or drop whole periods."
        )
    return found


def depth_of(text: Mapping[str, object], depth_key: str) -> int:
    """The number of blocks; of configs without one, the length of the list of their kinds."""
    value = text.get(depth_key)
    listed = text.get("layers_block_type")
    if value is None and isinstance(listed, list):
        return len(listed)
    return value if type(value) is int else 0


def _recount(found: dict[str, object], text: Mapping[str, object], layers: int, keep: Sequence[int]) -> None:
    """Counts and patterns of the blocks kept, in place."""
    for key in BEFORE_EXPERTS:
        if type(before := text.get(key)) is int:
            found[key] = sum(i < before for i in keep)
    if text.get(LAST) is not None:
        last = _whole(text, LAST, -1)
        found[LAST] = sum(i <= last for i in keep) - 1 if 0 <= last < layers - 1 else len(keep) - 1
        if last >= 0 and not any(i <= last for i in keep):
            found |= {FIRST: len(keep), LAST: len(keep)}
    if _whole(text, INTERVAL, 1) > 1:
        found[INTERVAL] = next(
            (
                n
                for n in range(1, layers + 1)
                if _sparse(found | {INTERVAL: n}, keep) == _kept_sparse(text, layers, keep)
            ),
            text[INTERVAL],
        )
    if _whole(text, STEP, 1) > 1:
        dense = [at for at, sparse in enumerate(_kept_sparse(text, layers, keep)) if not sparse]
        found |= {STEP: 1, ONLY_DENSE: dense}
    for period, offset in PERIODS:
        if period in text:
            found |= kept_period(text, period, offset, keep)


def _sparse(text: Mapping[str, object], keep: Sequence[int]) -> tuple[bool, ...]:
    return sparse_blocks(text, len(keep))


def _kept_sparse(text: Mapping[str, object], layers: int, keep: Sequence[int]) -> tuple[bool, ...]:
    sparse = sparse_blocks(text, layers)
    return tuple(sparse[i] for i in keep)


def kept_period(text: Mapping[str, object], period: str, offset: str, keep: Sequence[int]) -> dict[str, int]:
    """The period that the blocks kept have: the source's own where it fits, else the shortest."""
    wanted = [_in_period(text, period, offset, i) for i in keep]
    own = (_whole(text, period, 1), _whole(text, offset, 0))
    others = ((n, at) for n in range(1, len(keep) + 2) for at in range(n))
    for n, at in (own, *others):
        if [i % n == at for i in range(len(keep))] == wanted:
            return {period: n, offset: at}
    raise KnobError(
        f"blocks must stand as {period} and {offset} can say it, every so many one: blocks {list(keep)} have "
        f"no such period. Drop whole periods, or blocks at the end."
    )


def _share(found: dict[str, object], text: Mapping[str, object], layers: int, keep: Sequence[int]) -> None:
    """Blocks that attend to another's keys and values stay with the one that has them."""
    shared = _whole(text, SHARED_TAIL, 0)
    if not shared:
        return
    kinds = text.get("layer_types")
    first = layers - shared
    if not isinstance(kinds, list) or not 1 <= first <= layers:
        raise KnobError(f"blocks of a model with {SHARED_TAIL} {shared} and no layer_types can't be dropped.")
    if lost_kinds := set(kinds[first:]) - set(kinds[:first]):
        raise CheckpointError(
            f"config.json: the last {shared} blocks take keys and values of earlier ones of their kind, of "
            f"{sorted(map(str, lost_kinds))[0]} there is none. Restore the original config.json."
        )
    givers = {kind: max(i for i in range(first) if kinds[i] == kind) for kind in set(kinds[:first])}
    needed = {givers[kinds[i]] for i in keep if i >= first}
    if lost := sorted(needed - set(keep)):
        raise KnobError(
            f"the last {shared} blocks attend to the keys and values of blocks {sorted(givers.values())}, which must "
            f"stay while one of them does: block {lost[0]} is dropped. Keep it."
        )
    found[SHARED_TAIL] = sum(i >= first for i in keep)
