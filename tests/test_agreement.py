"""A config and tensors that contradict each other, about experts or a tied output matrix: refused or said in plan."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.variant import export_variant
from tests.support.stock_models import logits
from tests.support.stock_models import one_thread as one_thread
from tests.support.zoo import ZOO, make, make_sized
from transform.agreement import check_experts
from transform.errors import CheckpointError
from transform.knobs import Knobs
from transform.load import load_model
from transform.plan import make_plan
from transform.read import read_checkpoint

# Another say than the tensors': the row, what its config is told, how the refusal goes on.
CONTRADICTIONS: tuple[tuple[str, Mapping[str, object], str], ...] = (
    ("qwen3_moe", {"mlp_only_layers": [0]}, "block 3 has experts by mlp_only_layers"),
    ("qwen3_moe", {"mlp_only_layers": [0, 3, 4]}, "block 4 has no experts by mlp_only_layers"),
    ("qwen3_moe-step", {"decoder_sparse_step": 1}, "block 0 has experts by"),
    ("glm4_moe", {"first_k_dense_replace": 1}, "block 1 has experts by first_k_dense_replace"),
    ("ernie4_5_moe", {"moe_layer_start_index": 3}, "block 2 has no experts by moe_layer_start_index"),
    ("lfm2_moe", {"num_dense_layers": 0}, "block 0 has experts by num_dense_layers"),
    ("nemotron_h", {"layers_block_type": ["moe"] * 6}, "block 0 has experts by layers_block_type"),
    ("glm4_moe_lite", {"mlp_layer_types": ["sparse"] * 6}, "block 0 has experts by mlp_layer_types"),
    ("exaone_moe", {"mlp_layer_types": ["dense", *["sparse"] * 4]}, "must list one value per block, it has 5 for 6"),
    ("jamba", {"expert_layer_period": 1, "expert_layer_offset": 0}, "block 0 has experts by expert_layer_period"),
)  # fmt: skip


def told(directory: Path, change: Mapping[str, object]) -> Path:
    """The checkpoint with a config that says something else."""
    config = json.loads((directory / "config.json").read_text()) | change
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(("name", "change", "words"), CONTRADICTIONS)
def test_experts_in_other_blocks_than_the_config_says_are_refused(
    name: str, change: Mapping[str, object], words: str, tmp_path: Path
) -> None:
    source = make(name, tmp_path / "source")
    make_plan(read_checkpoint(source), Knobs())
    with pytest.raises(CheckpointError, match=words):
        make_plan(read_checkpoint(told(source, change)), Knobs())


@pytest.mark.parametrize("name", ["glm4_moe_lite", "mimo_v2_flash", "llama4_text"])
def test_lists_that_transformers_derives_say_it_as_well(name: str, tmp_path: Path) -> None:
    source = make(name, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    for key in ("mlp_layer_types", "moe_layers"):
        config.pop(key, None)
    (source / "config.json").write_text(json.dumps(config))
    check_experts(read_checkpoint(source))


@pytest.mark.extra  # every row once more
@pytest.mark.parametrize("name", ZOO)
def test_every_row_agrees_with_itself(name: str, tmp_path: Path) -> None:
    check_experts(read_checkpoint(make(name, tmp_path / "source")))


def with_head(directory: Path, factor: float) -> Path:
    """A tied checkpoint that stores its output matrix as well, times a factor."""
    file = sorted(directory.glob("*.safetensors"))[0]
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    table = load_file(directory / index["weight_map"]["model.embed_tokens.weight"])["model.embed_tokens.weight"]
    save_file({**load_file(file), "lm_head.weight": factor * table}, file, {"format": "pt"})
    index["weight_map"]["lm_head.weight"] = file.name
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_a_tied_head_of_its_own_is_used_as_transformers_does(tmp_path: Path) -> None:
    source = make_sized("qwen3_moe", tmp_path / "source", tie_word_embeddings=True, mlp_only_layers=[])
    before = logits(load_model(source))
    plan = make_plan(read_checkpoint(with_head(source, 2.0)), Knobs(2, (0, 1, 2, 4)))
    assert [warning for warning in plan.warnings if "transformers then ties nothing" in warning]
    assert torch.equal(logits(load_model(source)), 2.0 * before)
    found = export_variant(plan, tmp_path / "variant")["verification"]
    assert set(found["static_vs_dynamic"].values()) == {0.0}
    assert found["onnx_vs_torch"]["logits"] < 1e-4


def test_the_same_matrix_twice_is_no_news(tmp_path: Path) -> None:
    source = with_head(make_sized("qwen3_moe", tmp_path / "source", tie_word_embeddings=True), 1.0)
    plan = make_plan(read_checkpoint(source), Knobs())
    assert not [warning for warning in plan.warnings if "tie_word_embeddings" in warning]
    assert plan.no_graphs is None
    assert plan.source.head.name == "lm_head.weight"
