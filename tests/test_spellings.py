"""Numbers of a config under every name that some family has for them: what we read is what transformers reads.

The source of truth is the stock config class: a name that it doesn't read is refused where it stands alone, a name that
it does read gives the same number on both sides, and a number that isn't there is the class's default.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields

import pytest
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig

from tests.support.zoo import ZOO
from transform.architectures import architecture_named, known_model_types
from transform.architectures.vocabulary import SPELLINGS
from transform.errors import CheckpointError
from transform.strict_json import with_floats

FAMILIES = [name for name in known_model_types() if name in ZOO]
NAMES = SPELLINGS | {"norm_top_k": ("norm_topk_prob",)}
ODD = {"top_k": 3, "experts": 12, "eps": 0.0123, "norm_top_k": True}
UNUSED = {("cohere2_moe", "rms_norm_eps")}  # a field of the class that its norms don't have
HEAD_WIDTH = {"head_dim", "v_head_dim"}


def of_text(name: str) -> type[PretrainedConfig]:
    """The class of the decoder's config."""
    return type(CONFIG_MAPPING[name]().get_text_config(decoder=True))


def reads(name: str, key: str) -> bool:
    """Whether the class has the key as a field, or as another name of one."""
    kind = of_text(name)
    known = {field.name for field in fields(kind)} | kind.attribute_map.keys() | set(kind.attribute_map.values())
    return key in known and (name, key) not in UNUSED


def stored(name: str) -> dict[str, object]:
    """The config.json of the family's tiny checkpoint."""
    kind = getattr(transformers, ZOO[name].kind)
    config: dict[str, object] = json.loads(json.dumps(kind.config_class(**ZOO[name].config).to_dict(), default=str))
    return config


def renamed(name: str, setting: str) -> Iterator[tuple[str, dict[str, object]]]:
    """(key, the config with the setting under that key alone)."""
    family, config = architecture_named(name), stored(name)
    rest = {key: value for key, value in family.text_of(config).items() if key not in NAMES[setting]}
    for key in NAMES[setting]:
        yield key, family.with_text(config, rest | {key: ODD[setting]})


def theirs(name: str, config: Mapping[str, object], setting: str) -> object:
    """What the class has under the name that the model reads."""
    made = CONFIG_MAPPING[name].from_dict(dict(with_floats(config))).get_text_config(decoder=True)
    return getattr(made, architecture_named(name).keys[setting][0])


@pytest.mark.parametrize("name", FAMILIES)
def test_numbers_have_the_names_that_their_class_reads(name: str) -> None:
    family = architecture_named(name)
    for setting in SPELLINGS:
        ours = set(family.keys.get(setting, ()))
        assert ours == {key for key in NAMES[setting] if reads(name, key)}, setting
    assert family.graph is None or not reads(name, "norm_topk_prob") or family.keys["norm_top_k"] == ("norm_topk_prob",)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("setting", SPELLINGS)
def test_under_any_name_it_is_read_as_transformers_does_or_refused(name: str, setting: str) -> None:
    family = architecture_named(name)
    for key, config in renamed(name, setting):
        if not reads(name, key):
            with pytest.raises(CheckpointError, match=f"config.json: {key} is a key that no '{name}' model"):
                family.settings(config)
            continue
        found = family.settings(config)
        value = {"top_k": max(found.top_k), "experts": found.experts, "eps": found.eps}[setting]
        assert value == ODD[setting] == theirs(name, config, setting), key


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_absent_is_what_the_class_has(name: str) -> None:
    family, config, kind = architecture_named(name), stored(name), of_text(name)
    gone = {*NAMES["eps"], *NAMES["norm_top_k"], *HEAD_WIDTH, "rope_parameters", "rope_scaling", "rope_theta"}
    kept = {key: value for key, value in family.text_of(config).items() if key not in gone}
    defaults = {field.name: field.default for field in fields(kind)}
    ours = family.settings(family.with_text(config, kept))
    assert ours.eps == defaults[family.keys["eps"][0]]
    assert ours.rope_theta == getattr(kind, "default_theta", 10000.0)
    if "norm_topk_prob" in defaults:
        assert ours.norm_top_k == defaults["norm_topk_prob"]
    assert ours.own_head_dim == defaults.get(family.keys["own_head_dim"][0] if family.keys.get("own_head_dim") else "")


@pytest.mark.parametrize("name", [name for name in FAMILIES if architecture_named(name).graph is not None])
def test_a_list_of_kinds_is_read_where_the_class_has_one(name: str) -> None:
    assert architecture_named(name).reads_kinds == isinstance(getattr(of_text(name)(), "layer_types", None), list)


def test_two_names_of_one_number_must_agree() -> None:
    config = stored("deepseek_v3") | {"n_routed_experts": 8, "num_local_experts": 6}
    with pytest.raises(CheckpointError, match="must agree, got n_routed_experts 8, num_local_experts 6"):
        architecture_named("deepseek_v3").settings(config)


def test_a_dense_family_has_no_experts_by_any_name() -> None:
    with pytest.raises(CheckpointError, match=r"num_local_experts is a key that no 'llama' model .* no such number"):
        architecture_named("llama").settings(stored("llama") | {"num_local_experts": 8})
