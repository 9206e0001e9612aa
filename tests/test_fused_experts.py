"""Checkpoints whose experts are fused, as transformers 5 writes them when asked to: the same model, the same bytes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, OlmoeForCausalLM

from export.variant import export_variant
from importance.scores import model_digest
from transform.checkpoint import Checkpoint
from transform.errors import CheckpointError
from transform.knobs import Knobs
from transform.load import load_model
from transform.packed import dequantise
from transform.plan import make_plan
from transform.read import read_checkpoint

Copy = Callable[[Path], Path]


@pytest.fixture(scope="module", params=["sharded", "single"])
def fused(request: pytest.FixtureRequest, olmoe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small OLMoE with one tensor for all experts of a block."""
    directory = tmp_path_factory.mktemp("fused") / "olmoe-fused"
    size = "300KB" if request.param == "sharded" else "1GB"
    model = OlmoeForCausalLM.from_pretrained(olmoe)
    model.save_pretrained(directory, save_original_format=False, max_shard_size=size)
    return directory


def values(checkpoint: Checkpoint, name: str) -> bytes:
    """The bytes of a tensor."""
    tensor = checkpoint.tensors[name]
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        return file.read(tensor.nbytes)


def test_every_expert_is_a_view_with_the_bytes_of_its_own_tensor(olmoe: Path, fused: Path) -> None:
    ours, theirs = read_checkpoint(fused), read_checkpoint(olmoe)
    assert {n: t.shape for n, t in ours.tensors.items()} == {n: t.shape for n, t in theirs.tensors.items()}
    assert all(values(ours, name) == values(theirs, name) for name in theirs.tensors)
    assert model_digest(ours) == model_digest(theirs)


def test_a_variant_is_verified_and_stock_transformers_loads_the_same_model(fused: Path, tmp_path: Path) -> None:
    plan = make_plan(read_checkpoint(fused), Knobs())
    manifest = export_variant(plan, tmp_path / "v")
    assert set(manifest["verification"]["static_vs_dynamic"].values()) == {0.0}
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "v")(ids).logits
        theirs = load_model(fused)(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["cuda", "int4", "int8"])
def test_every_form_holds_what_it_holds_of_single_experts(olmoe: Path, fused: Path, tmp_path: Path, form: str) -> None:
    for name, source in (("ours", fused), ("theirs", olmoe)):
        plan = make_plan(read_checkpoint(source), Knobs(2, (0, 3), form=form))
        export_variant(plan, tmp_path / name, verify=False)
    ours, theirs = read_checkpoint(tmp_path / "ours"), read_checkpoint(tmp_path / "theirs")
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        if tensor.pack is None:
            assert values(ours, name) == values(theirs, name)
        else:
            np.testing.assert_array_equal(dequantise(ours.tensors[name]), dequantise(tensor))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((8, 63, 64), "fused experts of a block"), ((8, 64), "fused experts of a block"),
     ((8, 64, 64, 1), "fused experts of a block"), ((0, 64, 64), "fused experts of a block"),
     ((7, 64, 64), "first missing: 'model.layers.1.mlp.experts.7.gate_proj.weight'"),
     ((8, 64, 32), "must have the shape")],
)  # fmt: skip
def test_fused_tensors_of_other_shapes_are_refused(
    olmoe: Path, copy_of: Copy, shape: tuple[int, ...], message: str
) -> None:
    model = OlmoeForCausalLM.from_pretrained(olmoe)
    copy = copy_of(olmoe)
    for file in copy.glob("model*"):
        file.unlink()
    model.save_pretrained(copy, save_original_format=False)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.mlp.experts.gate_up_proj"] = np.zeros(shape, np.float32)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(copy)


def test_an_expert_that_is_there_twice_is_refused(fused: Path, copy_of: Copy) -> None:
    copy = copy_of(fused)
    file = next(f for f in sorted(copy.glob("*.safetensors")) if any("gate_up_proj" in n for n in load_file(f)))
    for index in copy.glob("*.index.json"):
        index.unlink()
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("gate_up_proj"))
    tensors[name.replace("gate_up_proj", "0.up_proj.weight")] = np.zeros((32, 64), np.float32)
    for other in copy.glob("*.safetensors"):
        other.unlink()
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="there by itself as well"):
        read_checkpoint(copy)


def test_names_of_memory_that_the_family_does_not_read_say_the_way_out(molmo: Path, copy_of: Copy) -> None:
    copy = copy_of(molmo)
    load_model(molmo).save_pretrained(copy, save_original_format=False)
    with pytest.raises(CheckpointError, match="without save_original_format=False"):
        read_checkpoint(copy)
