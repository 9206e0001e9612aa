"""What a family's words and a config say about graphs, what stops them by name, and views of slabs."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from export.cost.count import count
from export.cost.work import Workload
from tests.support.decoders import DECODERS, DENSE, EXPERTS, WINDOW, write_decoder
from tests.support.flops import decoder_flops
from tests.support.paths import ROOT
from transform.architectures import architecture_named, known_model_types
from transform.architectures.graph_keys import unread_keys
from transform.checkpoint import Checkpoint
from transform.derived import with_derived_lists
from transform.errors import CheckpointError
from transform.experts import experts_of, is_turned, turned_experts_of
from transform.forms import form_named
from transform.graphs import why_no_graphs
from transform.knobs import Knobs
from transform.load import load_model
from transform.packed import dequantise, fake_quantised, read_packed, write_packed
from transform.packed_layout import packing_for
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.strict_json import Record, read_json
from transform.write import write_json

# config.json as released, by what graphs must know of it; what all have is left out.
RELEASED: dict[str, Record] = {
    "qwen3_moe": {
        "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
        "moe_intermediate_size": 768, "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
    },
    "gpt_oss": {
        "attention_bias": True, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
        "initial_context_length": 4096, "intermediate_size": 2880, "max_position_embeddings": 131072,
        "layer_types": ["sliding_attention", "full_attention"] * 12, "num_attention_heads": 64,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
        "output_router_logits": False, "rms_norm_eps": 1e-05, "rope_theta": 150000, "router_aux_loss_coef": 0.9,
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
            "rope_type": "yarn", "truncate": False,
        },
        "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": False, "vocab_size": 201088,
    },
    "glm4_moe": {
        "attention_bias": True, "first_k_dense_replace": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 10944, "max_position_embeddings": 131072, "moe_intermediate_size": 1408, "n_group": 1,
        "n_routed_experts": 128, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 96,
        "num_experts_per_tok": 8, "num_hidden_layers": 46, "num_key_value_heads": 8, "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 1000000,
        "routed_scaling_factor": 1.0, "tie_word_embeddings": False, "topk_group": 1, "use_qk_norm": False,
        "vocab_size": 151552,
    },
    "ernie4_5_moe": {
        "hidden_act": "silu", "hidden_size": 2560, "intermediate_size": 12288, "max_position_embeddings": 131072,
        "moe_capacity": [64, 64, 64], "moe_gate": "topk", "moe_intermediate_size": 1536, "moe_k": 6,
        "moe_layer_interval": 1, "moe_layer_start_index": 1, "moe_num_experts": 64, "moe_num_shared_experts": 2,
        "moe_use_aux_free": True, "num_attention_heads": 20, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True, "use_bias": False,
        "vocab_size": 103424,
    },
    "granitemoe": {
        "attention_bias": False, "attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "hidden_act": "silu",
        "hidden_size": 1024, "intermediate_size": 512, "logits_scaling": 6.0, "max_position_embeddings": 4096,
        "num_attention_heads": 16, "num_experts_per_tok": 8, "num_hidden_layers": 24, "num_key_value_heads": 8,
        "num_local_experts": 32, "residual_multiplier": 0.22, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 10000, "tie_word_embeddings": True, "vocab_size": 49155,
    },
}  # fmt: skip


@pytest.mark.parametrize("model_type", RELEASED)
def test_released_configs_have_graphs(model_type: str) -> None:
    family = architecture_named(model_type)
    assert family.graph is not None
    config = {"model_type": model_type, **RELEASED[model_type]}
    read = {key.partition(".")[0] for names in family.keys.values() for key in names}
    assert unread_keys(family.graph, read, config) == []
    checkpoint = Checkpoint(Path(), config, {}, ())
    assert checkpoint.graph.rope.width == checkpoint.settings.head_dim * (0.5 if model_type == "glm4_moe" else 1)


CHANGES: dict[str, tuple[str, dict[str, Any], str]] = {
    "an unread key": ("mixtral", {"clip_qkv": 3.0}, "nothing reads clip_qkv of config.json"),
    "another activation": ("qwen3_moe", {"hidden_act": "gelu"}, 'hidden_act must be "silu", it is "gelu"'),
    "an unknown turn": (
        "qwen3_moe", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rotary positions must be default",
    ),
    "an unread parameter": (
        "qwen3_moe", {"rope_scaling": {"rope_type": "default", "alpha": 2.0}}, "nothing reads alpha of the rotary",
    ),
    "another kind of attention": (
        "gpt_oss", {"layer_types": ["chunked_attention", *["full_attention"] * 3]}, "there is chunked_attention",
    ),
    "a limit that is none": ("gpt_oss", {"swiglu_limit": "7"}, "swiglu_limit must be a finite number"),
    "groups that don't fit": ("glm4_moe", {"n_group": 3}, "the second dividing the 8 experts"),
    "more experts than groups have": ("glm4_moe", {"topk_group": 1}, "a token's 4 experts must fit in the 1 groups"),
    "groups of one expert": ("glm4_moe", {"n_group": 8, "topk_group": 7}, "of at least 2 experts each"),
    "a limit below 0": ("gpt_oss", {"swiglu_limit": -1.0}, "swiglu_limit must be above 0, got -1"),
    "a number that floats can't hold": ("glm4_moe", {"routed_scaling_factor": 10**400}, "must be a finite number"),
    "a part that floats can't hold": ("glm4_moe", {"rope_parameters": {"partial_rotary_factor": 1e308}}, "finite"),
    "a part of heads that are turned whole": ("qwen2_moe", {"partial_rotary_factor": 0.5}, "transformers turns whole"),
    "a part of heads, in its parameters": (
        "solar_open", {"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "transformers turns whole"
    ),
    "stretched by nothing": ("mixtral", {"rope_parameters": {"rope_type": "linear", "factor": 0}}, "must be above 0"),
    "stretched from nothing": (
        "mixtral", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}},
        "original_max_position_embeddings of rotary positions must be above 0, got 0",
    ),
    "a ramp of no base": (
        "mixtral", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}}, "above 1 for yarn",
    ),
    "a band that is none": (
        "llama", {"rope_parameters": {
            "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
        "must be above low_freq_factor",
    ),
    "no word whether to truncate": (
        "mixtral", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": None}}, "be true or false",
    ),
    "two bases": ("mixtral", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters has another"),
    "weights that this family always renormalises": ("mixtral", {"norm_topk_prob": False}, "norm_topk_prob must be t"),
    "more experts than there are": ("qwen2_moe", {"num_experts": 4}, "mlp.gate.weight must have the shape [4, 64] by"),
    "more heads than there are": ("qwen3_moe", {"num_attention_heads": 8}, "q_proj.weight must have the shape [192, "),
    "fewer words than there are": ("llama", {"vocab_size": 100}, "embed_tokens.weight must have the shape [100, 64]"),
    "windows switched off and listed": ("qwen2", {"use_sliding_window": False}, "use_sliding_window must be true wher"),
    "a switch of another type": ("qwen3_moe", {"use_sliding_window": 1}, "use_sliding_window must be true or false"),
    "a window of nothing": ("mixtral", {"sliding_window": 0}, "sliding_window must be a whole number above 0"),
    "windows without a size": ("gpt_oss", {"sliding_window": None}, "sliding_window must be a whole number above 0"),
    "windows listed where no class reads it": (
        "llama", {"layer_types": ["sliding_attention"] * 4, "sliding_window": 7}, "transformers reads no such list",
    ),
    "windows that the class lists": ("gpt_oss", {"layer_types": None}, "layer_types must say which blocks slide"),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in DECODERS if name not in DENSE])
def test_experts_as_transformers_holds_them_have_graphs_too(name: str, tmp_path: Path) -> None:
    assert why_no_graphs(read_checkpoint(write_decoder(name, tmp_path, save_original_format=False))) is None


@pytest.mark.parametrize("what", CHANGES)
def test_what_stops_graphs_is_named(what: str, tmp_path: Path) -> None:
    name, change, reason = CHANGES[what]
    write_decoder(name, tmp_path)
    assert why_no_graphs(read_checkpoint(tmp_path)) is None
    write_json(tmp_path / "config.json", {**read_json(tmp_path / "config.json"), **change})
    assert reason in str(why_no_graphs(read_checkpoint(tmp_path)))


WINDOWS: dict[str, tuple[str, Record, set[int | None]]] = {
    "no switch: mixtral's class has none": ("mixtral", {"use_sliding_window": False}, {WINDOW}),
    "off": ("qwen3_moe", {"sliding_window": 4096, "use_sliding_window": False}, {None}),
    "off is the default": ("qwen3_moe", {"sliding_window": 4096, "use_sliding_window": None}, {None}),
    "on": ("qwen3_moe", {"sliding_window": 4096, "use_sliding_window": True}, {4096}),
    "off, so that no block is listed": ("qwen2_moe", {"layer_types": None, "use_sliding_window": False}, {None}),
    "all blocks see all": ("dots1", {"layer_types": None, "max_window_layers": 4}, {None}),
}


@pytest.mark.parametrize("what", WINDOWS)
def test_windows_are_those_of_transformers(what: str, tmp_path: Path) -> None:
    """The gate's prompts are shorter than 4,096 tokens."""
    name, change, windows = WINDOWS[what]
    write_decoder(name, tmp_path)
    config = {**read_json(tmp_path / "config.json"), **change}
    write_json(tmp_path / "config.json", {key: value for key, value in config.items() if value is not None})
    checkpoint = read_checkpoint(tmp_path)
    assert why_no_graphs(checkpoint) is None
    assert set(checkpoint.settings.windows) == windows
    theirs = AutoConfig.from_pretrained(tmp_path)
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * 4
    assert {theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds} == windows


def test_a_list_of_kinds_counts_where_the_class_reads_it(tmp_path: Path) -> None:
    """Mixtral's class has one window for all blocks, whatever a list says."""
    write_decoder("mixtral", tmp_path)
    config = read_json(tmp_path / "config.json") | {"layer_types": ["full_attention"] * 4}
    write_json(tmp_path / "config.json", config)
    checkpoint = read_checkpoint(tmp_path)
    assert set(checkpoint.settings.windows) == {WINDOW}
    assert why_no_graphs(checkpoint) is None


@pytest.mark.parametrize("change", [{"sliding_window": "x"}, {"max_position_embeddings": []}])
def test_lists_that_transformers_cant_derive_are_told(change: Record, tmp_path: Path) -> None:
    write_decoder("gpt_oss", tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    config = {**checkpoint.config, "layer_types": None, **change}
    with pytest.raises(CheckpointError, match=r"reads, for it lacks layer_types"):
        with_derived_lists(replace(checkpoint, config=config))


@pytest.mark.parametrize("name", ["granitemoe", "gpt_oss"])
def test_views_of_slabs_are_their_experts(name: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_decoder(name, tmp_path))
    stored = load_file(tmp_path / "model.safetensors")
    gate_up = stored[checkpoint.name("expert.gate_up", 2)]
    down = stored[checkpoint.name("expert.down_slab", 2)]

    def values(tensor: Any) -> torch.Tensor:
        data = np.fromfile(tensor.file, np.float32, tensor.nbytes // 4, offset=tensor.start)
        return torch.from_numpy(data.reshape(tensor.shape))

    if is_turned(checkpoint, 2):
        turned = turned_experts_of(checkpoint, 2)
        assert len(turned) == EXPERTS
        assert torch.equal(values(turned[3].gate_up), gate_up[3])
        assert torch.equal(values(turned[3].down), down[3])
        return
    expert = experts_of(checkpoint, 2)[3]
    inner = gate_up.shape[1] // 2
    assert torch.equal(values(expert.gate), gate_up[3, :inner])
    assert torch.equal(values(expert.up), gate_up[3, inner:])
    assert torch.equal(values(expert.down), down[3])


def test_slabs_of_neither_orientation_are_refused(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_decoder("granitemoe", tmp_path))
    name = checkpoint.name("expert.down_slab", 0)
    wrong = checkpoint.tensors[name]._replace(shape=(EXPERTS, 32, 192))
    changed = Checkpoint(checkpoint.path, checkpoint.config, {**checkpoint.tensors, name: wrong}, ())
    with pytest.raises(CheckpointError, match=r"must be \[E, 2I, 64\] and \[E, 64, I\], or"):
        is_turned(changed, 0)


@pytest.mark.parametrize("name", ["qwen2_moe", "granitemoe", "gpt_oss"])
def test_codes_mean_what_they_were_made_of(name: str, tmp_path: Path) -> None:
    """Each tensor read back from codes is what quantising it says, and near the source."""
    source = read_checkpoint(write_decoder(name, tmp_path / "source"))
    packing = packing_for(form_named("int8"), source)
    assert packing is not None
    (tmp_path / "packed").mkdir()
    write_packed(source, tmp_path / "packed", packing)
    packed = read_packed(tmp_path / "packed", read_json(tmp_path / "packed" / "config.json"))
    assert {n: t.shape for n, t in packed.tensors.items()} == {n: t.shape for n, t in source.tensors.items()}
    stored = load_file(tmp_path / "source" / "model.safetensors")
    expected = dict(fake_quantised(source, packing))
    assert {n for n, t in packed.tensors.items() if t.pack} == expected.keys()
    for tensor_name, make in expected.items():
        found = dequantise(packed.tensors[tensor_name])
        np.testing.assert_array_equal(found, make(), err_msg=tensor_name)
        np.testing.assert_allclose(found, stored[tensor_name].numpy(), rtol=0, atol=5e-3, err_msg=tensor_name)
    assert load_model(tmp_path / "packed").config.num_hidden_layers == source.settings.layers


def test_every_family_with_words_about_graphs_is_tried() -> None:
    families = map(architecture_named, known_model_types())
    assert {family.model_type for family in families if family.graph and not family.complete} == DECODERS.keys()


def test_the_family_that_the_docs_show_is_a_whole_one() -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    shown = page.partition("All of GLM-4.5:")[2].partition("```json")[2].partition("```")[0]
    assert json.loads(shown) == json.loads((ROOT / "transform" / "architectures" / "glm4_moe.json").read_text())


@pytest.mark.parametrize("form", ["cpu", "int4"])
@pytest.mark.parametrize("name", ["qwen2_moe", "granitemoeshared", "gpt_oss", "flex_olmo", "llama"])
def test_flops_by_arithmetic_are_those_that_torch_counts(name: str, form: str, tmp_path: Path) -> None:
    directory = write_decoder(name, tmp_path)
    plan = make_plan(read_checkpoint(directory), Knobs(k=None if name in DENSE else 2, keep=(0, 2, 3), form=form))
    # within any window: beyond it PyTorch's cache forgets, where graphs mask
    counted = count(plan, Workload(None, WINDOW - 2, 2))
    expected = decoder_flops(plan, directory, counted, 2)
    assert (counted.work.prefill_flops, counted.work.decode_flops) == expected


DOUBLED = {
    "another spelling in one block": (
        "glm4_moe", "model.layers.{}.mlp.shared_experts.up_proj.weight",
        "model.layers.{}.mlp.shared_expert.up_proj.weight",
    ),
    "experts in a slab and by themselves": (
        "gpt_oss", "model.layers.{}.mlp.experts.down_proj", "model.layers.{}.mlp.experts.3.down_proj.weight"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DOUBLED)
def test_tensors_that_another_one_hides_stop_graphs(what: str, tmp_path: Path) -> None:
    name, one, other = (text.format(2) for text in DOUBLED[what])
    shared: dict[str, Any] = {"n_shared_experts": 1} if name == "glm4_moe" else {}
    checkpoint = read_checkpoint(write_decoder(name, tmp_path, **shared))
    changed = replace(checkpoint, tensors={**checkpoint.tensors, other: checkpoint.tensors[one]._replace(name=other)})
    assert why_no_graphs(checkpoint) is None
    hidden = re.sub(r"(?<=experts\.)3", "{e}", other.replace(".2.", ".{i}.", 1))
    assert f"nothing reads {hidden}" in str(why_no_graphs(changed))


def test_a_tensor_around_the_blocks_that_nothing_reads_stops_graphs(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_decoder("mixtral", tmp_path))
    norm = checkpoint.tensor("norm")
    changed = replace(checkpoint, tensors={**checkpoint.tensors, "model.embed_norm.weight": norm})
    assert why_no_graphs(checkpoint) is None
    assert "nothing reads model.embed_norm.weight" in str(why_no_graphs(changed))
