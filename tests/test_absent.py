"""Models that can't be cut: every one of transformers with routed experts is a family or absent with a reason, and the
ways out that refusals name are ways."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from tests.support.stock_models import logits
from tests.support.zoo import ZOO, make
from transform.architectures import absent_model_types, architecture_named, known_model_types
from transform.errors import CheckpointError
from transform.knobs import Knobs
from transform.load import load_model
from transform.plan import make_plan
from transform.read import read_checkpoint

MODELS = Path(transformers.__file__).parent / "models"
ROUTED = re.compile(r"^class \w*(Experts|MoE|Moe|SparseMo|Router)\w*\(", re.MULTILINE)
NAMED = re.compile(r"^    model_type = \"(\w+)\"", re.MULTILINE)


def test_every_model_with_routed_experts_is_a_family_or_absent() -> None:
    known = {*known_model_types(), *absent_model_types()}
    for modeling in MODELS.glob("*/modeling_*.py"):
        name = modeling.parent.name
        if modeling.stem != f"modeling_{name}" or not ROUTED.search(modeling.read_text()):
            continue
        types = {name, *NAMED.findall((modeling.parent / f"configuration_{name}.py").read_text())}
        assert types & known, name
    assert not set(known_model_types()) & set(absent_model_types())


@pytest.mark.parametrize("name", absent_model_types())
def test_it_is_refused_with_the_reason_and_a_way_out(name: str) -> None:
    found = absent_model_types()[name]
    with pytest.raises(CheckpointError) as refused:
        architecture_named(name)
    assert found.why in str(refused.value)
    assert found.instead in str(refused.value)
    assert str(refused.value).endswith(".")


def test_code_that_travels_is_named(tmp_path: Path) -> None:
    config = {"model_type": "somebodys_moe", "auto_map": {"AutoModelForCausalLM": "modeling.SomeMoe"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"got 'somebodys_moe', whose code travels .* is never run\. Another family"
    ):
        read_checkpoint(tmp_path)


def test_a_layout_under_another_name_is_cut_as_the_refusal_says(tmp_path: Path) -> None:
    source = make("deepseek_v3", tmp_path / "source")
    own = json.loads((source / "config.json").read_text())
    named = own | {"model_type": "kimi_k2", "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.Model"}}
    (source / "config.json").write_text(json.dumps(named))
    with pytest.raises(CheckpointError, match='says model_type "deepseek_v3" and architectures'):
        read_checkpoint(source)
    del named["auto_map"]
    named |= {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}
    (source / "config.json").write_text(json.dumps(named))
    assert make_plan(read_checkpoint(source), Knobs(2, (0, 2, 3))).target.settings.layers == 3


def test_a_decoder_behind_pictures_is_cut_alone(tmp_path: Path) -> None:
    text = dict(ZOO["llama4_text"].config)
    eyes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 16, "patch_size": 4, "vision_output_dim": 40, "projector_input_dim": 40,
            "projector_output_dim": 40}  # fmt: skip
    whole = transformers.Llama4ForConditionalGeneration(transformers.Llama4Config(text_config=text, vision_config=eyes))
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="writes a llama4_text model"):
        read_checkpoint(tmp_path / "whole")
    decoder = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    decoder.save_pretrained(tmp_path / "decoder")
    assert make_plan(read_checkpoint(tmp_path / "decoder"), Knobs(2)).source.settings.layers == 6
    assert torch.equal(logits(load_model(tmp_path / "decoder")), logits(whole.language_model.eval()))
