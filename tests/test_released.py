"""Configurations as released: half the blocks and half of k are planned from headers, and what the variant's config
says of single blocks is what transformers' own class says of the source's."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from tests.support.paths import ROOT
from tests.support.released import NONE_AT_HAND, release, released, write_release
from transform.architectures import architecture_of
from transform.architectures.read import known_model_types
from transform.architectures.vocabulary import select_blocks
from transform.errors import CheckpointError, KnobError
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.strict_json import with_floats

REFUSED = {
    "gemma4": "must be full_attention",
    "granitemoehybrid": "one block that attends must stay",
    "qwen3_5_moe": "one block that attends must stay",
    "qwen3_next": "one block that attends must stay",
    "qwen3_vl_moe": "the first 3 blocks",
}
LISTLESS = {"qwen2", "qwen2_moe", "qwen3", "qwen3_next", "dots1", "glm4_moe_lite", "mimo_v2_flash"}  # of released ones
BEFORE = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
PLAN_ALL = """
import sys
from pathlib import Path
from tests.support.released import release
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
for directory in map(Path, sys.argv[1:]):
    checkpoint = read_checkpoint(directory)
    make_plan(checkpoint, Knobs(None, tuple(range(checkpoint.settings.layers // 2, checkpoint.settings.layers))))
    assert "torch" not in sys.modules, directory.name
"""


def quarter_and_end(layers: int) -> tuple[int, ...]:
    """Half the blocks: without those in the middle."""
    first = layers // 4
    return (*range(first), *range(layers - (layers // 2 - first), layers))


def theirs(config: Mapping[str, object]) -> dict[str, object]:
    """What transformers' class makes of a config's decoder."""
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    known = CONFIG_MAPPING[str(config["model_type"])].from_dict(dict(with_floats(plain)))
    return dict(known.get_text_config(decoder=True).to_dict())


def test_every_family_has_a_release_or_is_listed() -> None:
    assert sorted({*released(), *NONE_AT_HAND}) == list(known_model_types())
    assert not set(released()) & set(NONE_AT_HAND)


@pytest.mark.parametrize("name", released())
def test_half_of_it_is_planned(name: str, tmp_path: Path) -> None:
    config = release(name).plain
    source = read_checkpoint(write_release(tmp_path / "source", config))
    family, layers, k = source.architecture, source.settings.layers, max(source.settings.top_k)
    keep = quarter_and_end(layers)
    less = None if k < 2 or family.k == "fixed" else k // 2
    plan = make_plan(source, Knobs(less, keep))
    assert plan.target.settings.top_k == tuple(
        0 if source.settings.top_k[i] == 0 else less or source.settings.top_k[i] for i in keep
    )
    assert plan.bytes < sum(tensor.nbytes for tensor in source.tensors.values())
    assert (plan.no_graphs is None) == (family.graph is not None)
    assert plan.target.settings.experts_of == tuple(source.settings.experts_of[i] for i in keep)
    before, after = theirs(config), theirs(plan.target.config)
    for key, values in before.items():
        if isinstance(values, list) and len(values) == layers and key != "pad_token_id":
            assert after[key] == [values[i] for i in keep], key
    for key in BEFORE:
        if isinstance(first := family.text_of(config).get(key), int):
            assert family.text_of(plan.target.config)[key] == sum(i < first for i in keep)
    if "num_nextn_predict_layers" in family.text_of(config):
        assert family.text_of(plan.target.config)["num_nextn_predict_layers"] == 0
        assert "predict further tokens" in plan.left_out[0]


@pytest.mark.parametrize("name", REFUSED)
def test_blocks_that_something_needs_stay(name: str, tmp_path: Path) -> None:
    source = read_checkpoint(write_release(tmp_path / "source", release(name).plain))
    with pytest.raises(KnobError, match=REFUSED[name]):
        make_plan(source, Knobs(None, tuple(range(0, source.settings.layers, 2))))


@pytest.mark.parametrize(("name", "words"), [("minimax_m2", r'method "fp8".*bfloat16'), ("qwen2_moe", r'"gptq".*GPTQ')])
def test_quantised_releases_are_refused_with_another_to_take(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(write_release(tmp_path / "source", release(name).config))


def test_mxfp4_passes_without_graphs(tmp_path: Path) -> None:
    source = read_checkpoint(write_release(tmp_path / "source", release("gpt_oss").config))
    assert "mxfp4" in str(make_plan(source, Knobs(2)).no_graphs)


def test_configs_with_their_lists_are_planned_without_torch(tmp_path: Path) -> None:
    carrying = [name for name in released() if name not in LISTLESS]
    directories = [write_release(tmp_path / name, release(name).plain) for name in carrying if name not in REFUSED]
    command = [sys.executable, "-c", PLAN_ALL, *map(str, directories)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_pattern_of_letters_says_which_blocks_have_experts() -> None:
    config = release("nemotron_h").config
    settings = architecture_of(config).settings(config)
    letters = str(config["hybrid_override_pattern"])
    assert settings.experts_of == tuple(128 if letter == "E" else 0 for letter in letters)
    assert select_blocks(config, "num_hidden_layers", (0, 1, 5, 51))["hybrid_override_pattern"] == "ME*E"


def test_widths_of_experts_are_lists_where_they_are_as_long() -> None:
    config = {"num_hidden_layers": 3, "moe_intermediate_size": [5, 6, 7]}
    assert select_blocks(config, "num_hidden_layers", (0, 2))["moe_intermediate_size"] == [5, 7]
    config = {"num_hidden_layers": 3, "moe_intermediate_size": [5, 6]}
    assert select_blocks(config, "num_hidden_layers", (0, 2))["moe_intermediate_size"] == [5, 6]


def test_a_config_that_lacks_its_lists_and_is_none_of_transformers_is_named(tmp_path: Path) -> None:
    config = release("qwen2_moe").plain | {"rms_norm_eps": 1e-6, "use_sliding_window": "no"}
    source = read_checkpoint(write_release(tmp_path / "source", json.loads(json.dumps(config))))
    with pytest.raises(CheckpointError, match="lacks layer_types"):
        make_plan(source, Knobs(None, (0, 1)))
