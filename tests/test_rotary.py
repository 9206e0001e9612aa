"""Rotary frequencies and the factor on cosines against transformers' own functions, for every scaling of graphs."""

from typing import Any

import numpy as np
import pytest
from transformers import Glm4MoeConfig, Qwen3MoeConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRotaryEmbedding

from export.graph.rotary import frequencies
from transform.architectures import architecture_named
from transform.architectures.graph_facts import decoder_graph
from transform.errors import CheckpointError

BASE = {"rope_theta": 150000.0}
YARN = BASE | {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": BASE | {"rope_type": "linear", "factor": 3.0},
    "llama3": BASE | {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": YARN,
    "yarn, not truncated": YARN | {"truncate": False},
    "yarn, other betas": YARN | {"beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, mscale": YARN | {"mscale": 0.8, "mscale_all_dim": 0.5},
    "yarn, attention_factor": YARN | {"attention_factor": 1.25},
    "yarn, one step": YARN | {"original_max_position_embeddings": 8, "truncate": False},
}  # fmt: skip


def ours(model_type: str, config: Any) -> tuple[Any, float]:
    family, raw = architecture_named(model_type), config.to_dict()
    return frequencies(decoder_graph(family.graph, raw, family.settings(raw)).rope)


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_frequencies_are_those_of_transformers(name: str) -> None:
    config = Qwen3MoeConfig(head_dim=64, rope_parameters=dict(SCALINGS[name]))
    theirs, factor = ROPE_INIT_FUNCTIONS[SCALINGS[name]["rope_type"]](config, None)
    found, by = ours("qwen3_moe", config)
    np.testing.assert_allclose(found, theirs.numpy(), rtol=2e-7)
    assert by == pytest.approx(factor, rel=1e-12)


def test_half_of_a_head_is_turned_where_a_config_leaves_it_out() -> None:
    config = Glm4MoeConfig(head_dim=20, rope_parameters={"rope_type": "default", **BASE})
    theirs, _ = Glm4MoeRotaryEmbedding.compute_default_rope_parameters(config)
    raw = config.to_dict()
    raw["rope_parameters"].pop("partial_rotary_factor")
    family = architecture_named("glm4_moe")
    found, _ = frequencies(decoder_graph(family.graph, raw, family.settings(raw)).rope)
    np.testing.assert_array_equal(found, theirs.numpy())


def test_part_of_the_width_is_scaled_where_the_class_turns_a_part() -> None:
    parameters = YARN | {"partial_rotary_factor": 0.5}
    config = Glm4MoeConfig(head_dim=64, rope_parameters=dict(parameters))
    theirs, factor = ROPE_INIT_FUNCTIONS["yarn"](config, None)
    found, by = ours("glm4_moe", config)
    np.testing.assert_allclose(found, theirs.numpy(), rtol=2e-7)
    assert by == pytest.approx(factor, rel=1e-12)


def test_a_part_of_a_head_is_even() -> None:
    raw = Glm4MoeConfig(head_dim=20).to_dict()
    raw["rope_parameters"] = {"rope_type": "default", "partial_rotary_factor": 0.15}
    family = architecture_named("glm4_moe")
    with pytest.raises(CheckpointError, match="an even part of a head's 20 numbers"):
        decoder_graph(family.graph, raw, family.settings(raw))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"rope_type": "longrope", "long_factor": [1.0]}, "nothing reads long_factor"),
        ({"rope_type": "dynamic", "factor": 2.0}, "rotary positions must be default, linear, llama3, yarn"),
        ({"rope_type": "linear"}, "linear rotary positions need factor"),
        ({"full_attention": {"rope_type": "default"}}, "must have one set of parameters"),
        ({"rope_type": "yarn", "factor": "2"}, "factor must be a finite number"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "transformers turns whole heads here"),
    ],
)
def test_what_no_graph_turns_is_refused(parameters: dict[str, Any], reason: str) -> None:
    raw = Qwen3MoeConfig(head_dim=20).to_dict() | {"rope_parameters": parameters}
    family = architecture_named("qwen3_moe")
    with pytest.raises(CheckpointError, match=reason):
        decoder_graph(family.graph, raw, family.settings(raw))
