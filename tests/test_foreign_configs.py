"""What configs say besides the model: quantisation of other tools, kernels of one machine, wrong kinds of values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import OlmoeForCausalLM

from export.gate.blockwise import blockwise_gate
from export.variant import export_variant
from transform.errors import CheckpointError
from transform.knobs import Knobs
from transform.load import check_buildable, load_with_report
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.weight_files import INDEX, SINGLE

Copy = Callable[[Path], Path]


def changed(directory: Path, **change: Any) -> Path:
    """The checkpoint with other values in its config."""
    config = json.loads((directory / "config.json").read_text()) | change
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("family", ["olmoe", "molmo"])
@pytest.mark.parametrize(
    "about",
    [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "fp8"}, {"quant_method": "gptq"},
     {"group_size": 64, "bits": 4}, {}, "int8", {"quant_method": ["knobcast"]}],
)  # fmt: skip
def test_plain_weights_with_a_quantisation_of_others_are_refused_at_once(
    request: pytest.FixtureRequest, copy_of: Copy, family: str, about: object
) -> None:
    copy = changed(copy_of(request.getfixturevalue(family)), quantization_config=about)
    with pytest.raises(CheckpointError, match=r"remove quantization_config from config\.json"):
        read_checkpoint(copy)


def test_no_quantisation_may_be_said_as_null(olmoe: Path, copy_of: Copy) -> None:
    assert read_checkpoint(changed(copy_of(olmoe), quantization_config=None)).tensors


@pytest.mark.parametrize("end", ["weight_scale_inv", "weight_scale", "qweight", "weight.absmax", "scales"])
def test_scales_beside_weights_are_called_quantised(molmo: Path, copy_of: Copy, end: str) -> None:
    copy = copy_of(molmo)
    tensors = load_file(copy / SINGLE)
    tensors[f"model.transformer.blocks.0.att_proj.{end}"] = np.zeros(3, np.float32)
    save_file(tensors, copy / SINGLE, {"format": "pt"})
    with pytest.raises(CheckpointError, match="quantised"):
        read_checkpoint(copy)


@pytest.mark.parametrize(
    "kernels",
    [{"_attn_implementation": "flash_attention_2"}, {"attn_implementation": "flash_attention_3"},
     {"_attn_implementation": "flex_attention", "experts_implementation": "grouped_mm"}],
)  # fmt: skip
def test_kernels_of_the_machine_it_was_saved_on_stay_behind(
    olmoe: Path, copy_of: Copy, tmp_path: Path, kernels: dict[str, str]
) -> None:
    copy = changed(copy_of(olmoe), **kernels)
    plan = make_plan(read_checkpoint(copy), Knobs(2, (0, 2)))
    manifest = export_variant(plan, tmp_path / "v", onnx=False)
    assert set(manifest["verification"]["static_vs_dynamic"].values()) == {0.0}
    assert not kernels.keys() & json.loads((tmp_path / "v" / "config.json").read_text()).keys()
    found = blockwise_gate(plan, read_checkpoint(tmp_path / "v"), False, lambda _: None)
    assert set(found.static_vs_dynamic.values()) == {0.0}


@pytest.mark.parametrize(
    ("change", "field"),
    [({"use_cache": None}, "use_cache"), ({"output_router_logits": "no"}, "output_router_logits"),
     ({"initializer_range": [1]}, "initializer_range"), ({"pad_token_id": "x"}, "pad_token_id"),
     ({"pad_token_id": 50280}, "adding_idx|pad"), ({"pad_token_id": 10**30}, "adding_idx|pad"),
     ({"attention_dropout": "x"}, "attention_dropout"), ({"rope_parameters": 5}, "rope_parameters|rope")],
)  # fmt: skip
def test_a_config_that_transformers_refuses_is_refused_before_any_work(
    olmoe: Path, copy_of: Copy, tmp_path: Path, change: dict[str, object], field: str
) -> None:
    copy = changed(copy_of(olmoe), **change)
    with pytest.raises(CheckpointError, match=field):
        export_variant(make_plan(read_checkpoint(copy), Knobs(2)), tmp_path / "v")
    assert not list(tmp_path.glob("*v*"))
    with pytest.raises(CheckpointError, match=field):
        load_with_report(copy)


def test_configs_as_they_are_can_be_built(olmoe: Path, molmo: Path) -> None:
    for source in (olmoe, molmo):
        check_buildable(read_checkpoint(source))


@pytest.mark.parametrize(
    ("scaling", "theta"),
    [({"rope_type": "default"}, 10000.0), ({"type": "default"}, 10000.0), ({}, 10000.0),
     ({"rope_type": "default", "rope_theta": 5e5}, 5e5), ({"type": "default", "rope_theta": 5e5}, 5e5)],
)  # fmt: skip
def test_unscaled_positions_may_be_said_in_words(
    olmoe: Path, copy_of: Copy, tmp_path: Path, scaling: dict[str, object], theta: float
) -> None:
    copy = changed(copy_of(olmoe), rope_scaling=scaling)
    config = json.loads((copy / "config.json").read_text())
    del config["rope_parameters"]
    (copy / "config.json").write_text(json.dumps(config))
    checkpoint = read_checkpoint(copy)
    assert checkpoint.settings.rope_theta == theta
    plan = make_plan(checkpoint, Knobs(2, (0, 2)))
    assert export_variant(plan, tmp_path / "v")["verification"]["onnx_vs_torch"]["prefill"] < 1e-4


@pytest.mark.parametrize(
    "scaling", [{"type": "linear", "factor": 2.0}, {"factor": 2.0}, {"rope_type": "yarn"}, "linear", 2.0, [1],
                {"rope_type": "default", "type": "linear"}]
)  # fmt: skip
def test_scaled_positions_stay_refused(olmoe: Path, copy_of: Copy, scaling: object) -> None:
    with pytest.raises(CheckpointError, match="scaled rotary positions"):
        read_checkpoint(changed(copy_of(olmoe), rope_scaling=scaling))
    if isinstance(scaling, dict) and {"type", "rope_type"} & scaling.keys():
        with pytest.raises(CheckpointError, match="scaled rotary positions"):
            read_checkpoint(changed(copy_of(olmoe), rope_parameters=scaling))


def test_buffers_that_transformers_computes_are_left_out(olmoe: Path, copy_of: Copy, tmp_path: Path) -> None:
    copy = copy_of(olmoe)
    table = json.loads((copy / INDEX).read_text())
    first = sorted(copy.glob("model-*.safetensors"))[0]
    tensors = load_file(first)
    for name in ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"):
        tensors[name] = np.ones(8, np.float32)
        table["weight_map"][name] = first.name
    save_file(tensors, first, {"format": "pt"})
    (copy / INDEX).write_text(json.dumps(table))
    export_variant(make_plan(read_checkpoint(copy), Knobs()), tmp_path / "v", onnx=False)
    assert read_checkpoint(tmp_path / "v").tensors.keys() == read_checkpoint(olmoe).tensors.keys()


@pytest.mark.parametrize("what", ["index without metadata", "adapter"])
def test_weights_are_those_of_the_table_where_transformers_reads_the_directory_otherwise(
    olmoe: Path, copy_of: Copy, what: str
) -> None:
    copy = copy_of(olmoe)
    if what == "adapter":
        about = {"peft_type": "LORA", "base_model_name_or_path": str(olmoe), "target_modules": ["q_proj"], "r": 4}
        (copy / "adapter_config.json").write_text(json.dumps(about))
        assert any("adapter_config.json" in warning for warning in make_plan(read_checkpoint(copy), Knobs()).warnings)
    else:
        table = json.loads((copy / INDEX).read_text())
        (copy / INDEX).write_text(json.dumps({"weight_map": table["weight_map"]}))
    model, report = load_with_report(copy)
    assert report.clean
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        theirs = OlmoeForCausalLM.from_pretrained(olmoe)(ids).logits
        torch.testing.assert_close(model(ids).logits, theirs, rtol=0, atol=0)
