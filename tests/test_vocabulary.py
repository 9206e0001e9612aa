"""What configs say of single blocks, rewritten for those that stay; patterns without words for it are refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from transform.architectures.vocabulary import check_block_entries, select_blocks, sparse_blocks
from transform.architectures.windows import windows_of
from transform.depth import drop_blocks
from transform.errors import CheckpointError, KnobError
from transform.read import read_checkpoint

DEPTH = "num_hidden_layers"


@pytest.mark.parametrize(
    ("said", "keep", "wanted"),
    [
        ({"layer_types": ["a", "b", "c", "d", "e", "f"]}, (1, 4), {"layer_types": ["b", "e"]}),
        ({"mlp_only_layers": [0, -1, 3]}, (0, 3, 5), {"mlp_only_layers": [0, 1]}),
        ({"moe_layers": [1, 3, 5]}, (0, 3, 5), {"moe_layers": [1, 2]}),
        ({"rope_scaling_layers": [0, 2, 3]}, (2, 4), {"rope_scaling_layers": [0]}),
        ({"per_layer_config": {"01": {"x": 1}, "5": {"x": 2}}}, (0, 5), {"per_layer_config": {"1": {"x": 2}}}),
        ({"first_k_dense_replace": 3}, (0, 2, 5), {"first_k_dense_replace": 2}),
        ({"num_dense_layers": 2}, (2, 3), {"num_dense_layers": 0}),
        ({"decoder_sparse_step": 2}, (0, 1, 2, 5), {"decoder_sparse_step": 1, "mlp_only_layers": [0, 2]}),
        (
            {"moe_layer_start_index": 2, "moe_layer_end_index": 4},
            (0, 2, 3, 5),
            {"moe_layer_start_index": 1, "moe_layer_end_index": 2},
        ),
        (
            {"moe_layer_start_index": 2, "moe_layer_end_index": 3},
            (4, 5),
            {"moe_layer_start_index": 2, "moe_layer_end_index": 2},
        ),
        ({"moe_layer_interval": 2}, (1, 3, 5), {"moe_layer_interval": 1}),
        ({"attn_layer_period": 3, "attn_layer_offset": 1}, (1, 4), {"attn_layer_period": 1, "attn_layer_offset": 0}),
        ({"expert_layer_period": 2, "expert_layer_offset": 1}, (0, 1, 2, 3), {"expert_layer_period": 2}),
        ({"num_nextn_predict_layers": 1}, (0, 1), {"num_nextn_predict_layers": 0}),
        (
            {"num_kv_shared_layers": 2, "layer_types": ["a", "b", "a", "b", "a", "b"]},
            (2, 3, 5),
            {"num_kv_shared_layers": 1},
        ),
    ],
)
def test_words_about_blocks_are_rewritten(
    said: Mapping[str, object], keep: tuple[int, ...], wanted: Mapping[str, object]
) -> None:
    text = {DEPTH: 6, **said}
    found = select_blocks(text, DEPTH, keep)
    assert {key: found[key] for key in wanted} == wanted
    assert found[DEPTH] == len(keep)
    whole = sparse_blocks(text, 6)
    assert sparse_blocks(found, len(keep)) == tuple(whole[i] for i in keep)
    assert select_blocks(text, DEPTH, range(6)) == text


@pytest.mark.parametrize(
    ("said", "keep", "why"),
    [
        ({"attn_layer_period": 3, "attn_layer_offset": 1}, (0, 1, 4, 5), "no such period"),
        ({"moe_layer_interval": 3}, (0, 2, 5), "expressible by moe_layer_interval"),
        ({"num_kv_shared_layers": 2, "layer_types": ["a", "b"] * 3}, (0, 1, 3, 4), "block 2 is dropped"),
        ({"hidden_size_per_layer_input": 8}, (0, 1), "one tensor holds inputs of all"),
    ],
)
def test_what_has_no_words_is_refused(said: Mapping[str, object], keep: tuple[int, ...], why: str) -> None:
    with pytest.raises(KnobError, match=why):
        select_blocks({DEPTH: 6, **said}, DEPTH, keep)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"layer_types": ["a", {}]}, "layer_types lists a text or a number per block, got {}"),
        ({"mlp_layer_types": [["sparse"]]}, "mlp_layer_types lists a text"),
        ({"moe_layer_freq": [0, 1, []]}, "moe_layer_freq lists a text"),
        ({"mlp_only_layers": [[0]]}, r"mlp_only_layers lists numbers of blocks, got \[0\]"),
        ({"moe_layers": [1, "2"]}, "moe_layers lists numbers of blocks, got '2'"),
        ({"per_layer_config": {"x": {}}}, "per_layer_config has numbers of blocks as keys, got 'x'"),
    ],
)
def test_what_speaks_of_blocks_by_no_number_or_text_is_refused(said: Mapping[str, object], why: str) -> None:
    with pytest.raises(CheckpointError, match=why):
        check_block_entries(said)
    check_block_entries({"layer_types": ["a", None], "num_experts_per_tok": [1, 2], "mlp_only_layers": [0, -1]})


@pytest.mark.parametrize("kind", ["sliding_attention", "chunked_attention"])
def test_a_window_that_no_graph_can_count_is_refused(kind: str) -> None:
    said = {"layer_types": ["full_attention", kind], "sliding_window": 2**63, "attention_chunk_size": 2**63}
    with pytest.raises(
        CheckpointError, match=r"must be at most 4,611,686,018,427,387,904 tokens, got 9223372036854775808"
    ):
        windows_of(said, 2, None, None, listed=True)
    assert windows_of({**said, "sliding_window": 9, "attention_chunk_size": 9}, 2, None, None, listed=True) == (None, 9)


@pytest.mark.parametrize("shared", [-1, -9, 7])
def test_a_tail_that_shares_with_nobody_is_refused(shared: int) -> None:
    with pytest.raises(KnobError, match="can't be dropped"):
        select_blocks({DEPTH: 6, "num_kv_shared_layers": shared, "layer_types": ["a"] * 6}, DEPTH, (0, 1))
    with pytest.raises(CheckpointError, match="of b there is none"):
        select_blocks({DEPTH: 3, "num_kv_shared_layers": 1, "layer_types": ["a", "a", "b"]}, DEPTH, (0, 2))


def test_a_list_that_nobody_knows_stops_a_family_that_names_no_tensors(tmp_path: Path) -> None:
    """As long as there are blocks: it may be about them."""
    from tests.support.zoo import make

    source = read_checkpoint(make("qwen3_moe", tmp_path / "source"))
    strange = replace(source, config=dict(source.config) | {"layer_gains": [1, 2, 3, 4, 5, 6]})
    assert drop_blocks(strange, range(6)) is strange
    with pytest.raises(CheckpointError, match="layer_gains has a value for each of the 6 blocks"):
        drop_blocks(strange, (0, 1))


def test_a_list_that_the_config_leaves_out_is_asked_for(tmp_path: Path) -> None:
    """Derived anew for fewer blocks it would be another one."""
    from tests.support.zoo import make

    source = read_checkpoint(make("gpt_oss", tmp_path / "source"))
    bare = replace(source, config={key: value for key, value in source.config.items() if key != "layer_types"})
    assert drop_blocks(bare, (0, 2, 3)).config["layer_types"] == [source.config["layer_types"][i] for i in (0, 2, 3)]


def test_the_last_block_is_of_the_kind_that_transformers_makes_it(tmp_path: Path) -> None:
    from tests.support.zoo import make

    with pytest.raises(KnobError, match=r"last block .* must be full_attention"):
        drop_blocks(read_checkpoint(make("gemma4", tmp_path / "source")), (0, 1, 2, 3, 4))


def test_what_predicts_further_tokens_goes_with_the_first_dropped_block(tmp_path: Path) -> None:
    from tests.support.zoo import make

    source = read_checkpoint(make("deepseek_v3", tmp_path / "source"))
    assert any(name.startswith(("mtp.", "model.layers.6.")) for name in source.tensors)
    assert drop_blocks(source, range(6)) is source
    assert not any(name.startswith(("mtp.", "model.layers.5.")) for name in drop_blocks(source, range(5)).tensors)
