"""Weights that another tool has quantised: MXFP4 passes as it is, everything else is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.stock_models import logits, looked_at
from tests.support.zoo import make_sized
from transform.errors import CheckpointError, KnobError
from transform.knobs import Knobs
from transform.load import load_view, load_with_report
from transform.plan import make_plan
from transform.quantised import refuse_quantised
from transform.read import read_checkpoint
from transform.write import write_checkpoint

WIDTHS = {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def mxfp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose experts are codes of 4 bits, 32 by a scale, as released."""
    directory = make_sized("gpt_oss", tmp_path_factory.mktemp("mxfp4") / "source", **WIDTHS)
    generator = torch.Generator().manual_seed(3)
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            experts, columns, rows = tensors.pop(name).shape
            shape = (experts, rows, columns // 32, 16)
            tensors[f"{name}_blocks"] = torch.randint(0, 256, shape, generator=generator).byte()
            tensors[f"{name}_scales"] = torch.randint(118, 122, shape[:3], generator=generator).byte()
        save_file(tensors, file, {"format": "pt"})
    index = directory / "model.safetensors.index.json"
    if index.exists():
        placed = {name: file.name for file in directory.glob("*.safetensors") for name in load_file(file)}
        index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": placed}))
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens"]}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.extra  # needs accelerate
def test_codes_pass_where_blocks_are_dropped_and_k_is_lowered(mxfp4: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers needs it for MXFP4")
    checkpoint = read_checkpoint(mxfp4)
    plan = make_plan(checkpoint, Knobs(2, (0, 1, 2, 4)))
    assert plan.no_graphs == "no graphs for this family yet: nothing reads weights quantised by mxfp4"
    (tmp_path / "v").mkdir()
    write_checkpoint(plan.target, tmp_path / "v")
    full, report = load_with_report(mxfp4, attn_implementation="eager")
    assert report.clean
    ours, report = load_with_report(tmp_path / "v", attn_implementation="eager")
    assert report.clean
    with looked_at(full, (0, 1, 2, 4), 2):
        assert torch.equal(logits(ours), logits(full))
    mapped, _ = load_view(read_checkpoint(tmp_path / "v"))
    assert torch.equal(logits(mapped), logits(ours))


def test_codes_are_never_cast(mxfp4: Path) -> None:
    with pytest.raises(KnobError, match="weights quantised by mxfp4 move as they are"):
        make_plan(read_checkpoint(mxfp4), Knobs(dtype="bfloat16"))


# What tools write: into config.json, or (a name with an end) beside it; how the refusal calls the method.
LEFT: tuple[tuple[str, object, str], ...] = (
    ("quantization_config", {"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    ("quantization_config", {"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    ("compression_config", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ("quantization_config", {"load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes"),
    ("quantization_config", {"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao"),
    ("quantization_config", {"quant_method": "hqq", "quant_config": {}}, "hqq"),
    ("quantization_config", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt"),
    ("quantization_config", {"quant_algo": "FP8", "kv_cache_scheme": None}, "modelopt"),
    ("quantization_config", {"quant_method": "auto-round", "bits": 4}, "auto-round"),
    ("quantization_config", {"quant_method": "quark"}, "quark"),
    ("quantization", {"group_size": 64, "bits": 4}, "mlx"),
    ("text_config", {"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "modelopt"),
    ("quantize_config.json", {"bits": 4, "group_size": 128}, "gptq"),
    ("quant_config.json", {"w_bit": 4, "q_group_size": 128}, "awq"),
)  # fmt: skip


@pytest.mark.parametrize(("where", "about", "method"), LEFT)
def test_every_tool_is_named(where: str, about: object, method: str, tmp_path: Path) -> None:
    config = {"model_type": "qwen3_moe"}
    if where.endswith(".json"):
        (tmp_path / where).write_text(json.dumps(about))
    else:
        config |= json.loads(json.dumps({where: about}))
    with pytest.raises(CheckpointError, match=f'method "{method}".*Use the checkpoint it was made of') as refused:
        refuse_quantised(tmp_path, config)
    assert where in str(refused.value)


@pytest.mark.parametrize(
    ("method", "way_out"),
    [("fp8", "the release in bfloat16"), ("gptq", "without GPTQ"), ("awq", "without AWQ"), ("mxfp4", "in bfloat16")],
)
def test_other_codes_are_refused_with_the_way_out(tmp_path: Path, method: str, way_out: str) -> None:
    directory = make_sized("qwen3_moe", tmp_path / "source")
    config = json.loads((directory / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f'method "{method}".*{way_out}'):
        read_checkpoint(directory)
