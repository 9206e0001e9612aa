"""Every form x k x set of blocks x way of calling against PyTorch with the weights as that form stores them.

The cuda form has no CPU kernel: numpy computes it in float32, over the same bytes. onnxruntime runs the others, int8
without repacked weights, whose kernels round activations to 8 bits. PyTorch has the variant's own weights in float32:
rounded to float16, or dequantised.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from export.files.integrity import external_tensors
from export.numpy_run import NumpySession
from export.run.session_options import SESSION_OPTIONS, session_options
from tests.support.full_size import write_sparse
from tests.support.graphs import empty_cache, session, step
from tests.support.models import BLOCKWISE, save_source, torch_logits, write_odd
from tests.support.variants import write_variant
from transform.errors import CheckpointError, KnobError
from transform.forms import NAMES, form_named
from transform.knobs import Knobs
from transform.load import load_model
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.stack import is_stacked
from transform.stored_form import form_of

LAYERS, EXPERTS = BLOCKWISE["num_hidden_layers"], BLOCKWISE["num_experts"]
SETTINGS: dict[str, dict[str, Any]] = {
    "whole": {},
    "k1": {"k": 1},
    "k5, first and last dropped": {"k": 5, "keep": (1, 2)},
    "k8, one block": {"k": 8, "keep": (3,)},
    "renormalised, k4": {"k": 4, "source": {"norm_topk_prob": True, "num_key_value_heads": 2}},
    "clipped, grouped": {"k": 2, "keep": (0, 2, 3), "source": {"clip_qkv": 0.5, "num_key_value_heads": 1}},
}


def variant(tmp_path: Path, form: str, setting: dict[str, Any]) -> tuple[Any, Any]:
    """(its text session, PyTorch's model of it)."""
    save_source(tmp_path / "source", torch.bfloat16, **BLOCKWISE, **setting.get("source", {}))
    made = write_variant(tmp_path / "source", tmp_path / "variant", setting.get("keep"), setting.get("k"), form=form)
    return session(made, "text.onnx"), load_model(made)


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_way_of_calling_equals_pytorch(setting: str, form: str, tmp_path: Path) -> None:
    text, theirs = variant(tmp_path, form, SETTINGS[setting])
    ids = np.random.default_rng(3).integers(2, 94, (2, 13))
    whole = torch_logits(theirs, ids, np.ones_like(ids))
    tolerance = 1e-5 * max(1.0, float(np.abs(whole).max()))
    cache = empty_cache(text, 2)
    for start, stop in pairwise((0, 6, 7, 11, 13)):  # empty cache, one token, several tokens
        logits, cache = step(text, {"input_ids": ids[:, start:stop]}, np.ones((2, stop), np.int64), cache)
        np.testing.assert_allclose(logits, whole[:, start:stop], rtol=0, atol=tolerance)
    for side in (slice(None), slice(None, None, -1)):  # padded on the right, on the left
        mask = np.ones_like(ids)
        mask[1, 5:] = 0
        mask = np.ascontiguousarray(mask[:, side])
        logits, _ = step(text, {"input_ids": np.where(mask == 1, ids, -1)}, mask, empty_cache(text, 2))
        assert np.isfinite(logits).all()
        expected = torch_logits(theirs, ids, mask)
        np.testing.assert_allclose(logits[mask == 1], expected[mask == 1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("form", NAMES)
def test_another_k_gives_another_result(form: str, tmp_path: Path) -> None:
    """Otherwise the comparisons above could not tell."""
    logits = []
    for k in (2, 4):
        text, _ = variant(tmp_path / str(k), form, {"k": k})
        ids = np.arange(2, 9)[None]
        logits.append(step(text, {"input_ids": ids}, np.ones_like(ids), empty_cache(text, 1))[0])
    assert np.abs(logits[0] - logits[1]).max() > 1e-2


@pytest.mark.parametrize("form", ["cuda", "int4", "int8"])
def test_image_models_in_every_form(form: str, tmp_path: Path) -> None:
    """Vision and embedding graphs too: embeddings and logits of a picture prompt against PyTorch."""
    source = write_odd(tmp_path / "source", mlp_hidden_size=64, sizes={"I": 32, "p": 32})
    made = write_variant(source, tmp_path / "variant", (0, 2), 2, form=form)
    model = load_model(made)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((1, 2, 576, 588)).astype(np.float32)
    masks = np.ones((1, 2, 576), np.float32)
    masks[0, 1, 100:] = 0
    masks[0, 1, 90:100] = 0.4
    index = np.array([0, 5, 143, 144, 150, 287])
    features = session(made, "vision.onnx").run(
        None, {"images": images[0], "image_masks": masks[0], "feature_index": index}
    )[0]
    patch = json.loads((made / "io.json").read_text())["special_ids"]["image_patch"]
    ids = np.array([[3, *[patch] * len(index), 7, 11]])
    embeddings = session(made, "embedding.onnx").run(None, {"input_ids": ids, "image_features": features})[0]
    places = np.full((1, 2, 144), -100, np.int64)
    places.reshape(-1)[index] = np.arange(1, 1 + len(index))
    text = session(made, "text.onnx")
    logits, _ = step(text, {"inputs_embeds": embeddings}, np.ones_like(ids), empty_cache(text, 1))
    with torch.no_grad():
        expected = model(
            input_ids=torch.from_numpy(ids),
            images=torch.from_numpy(images),
            image_masks=torch.from_numpy(masks),
            image_input_idx=torch.from_numpy(places),
        ).logits.numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * max(5.0, float(np.abs(expected).max())))


def test_the_cuda_form_has_few_nodes_and_no_byte_twice(tmp_path: Path) -> None:
    save_source(tmp_path / "source", torch.bfloat16, **BLOCKWISE)
    made = write_variant(tmp_path / "source", tmp_path / "variant", k=2, form="cuda")
    graph = onnx.load(made / "text.onnx", load_external_data=False).graph
    fused = [node for node in graph.node if node.op_type == "MoE"]
    assert len(fused) == LAYERS
    assert len(graph.node) < 60 * LAYERS
    ranges = []
    for tensor in external_tensors(graph):
        entry = {item.key: item.value for item in tensor.external_data}
        ranges.append((int(entry["offset"]), int(entry["offset"]) + int(entry["length"])))
    ranges.sort()
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    weights = sum(tensor.nbytes for tensor in read_checkpoint(made).tensors.values())
    assert sum(stop - start for start, stop in ranges) == weights


def test_stacked_experts_are_the_experts_and_load_as_before(tmp_path: Path) -> None:
    """Each operand of the fused operator equals the stacked tensors by name, and transformers reads the same model."""
    save_source(tmp_path / "source", torch.bfloat16, **BLOCKWISE)
    made = write_variant(tmp_path / "source", tmp_path / "variant", form="cuda")
    stored = load_file(made / "model.safetensors")
    original = load_file(tmp_path / "source" / "model.safetensors")
    assert stored.keys() == original.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, original[name].to(torch.float16), rtol=0, atol=0)
    graph = onnx.load(made / "text.onnx", load_external_data=False).graph
    places = {tensor.name: tensor for tensor in external_tensors(graph)}
    data = (made / "model.safetensors").read_bytes()
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {
        proto.name: onnx.numpy_helper.to_array(proto) for proto in graph.initializer if proto.name not in places
    }

    def matrices(name: str) -> np.ndarray:
        entry = {item.key: item.value for item in places[name].external_data}
        start = int(entry["offset"])
        return np.frombuffer(data[start : start + int(entry["length"])], np.float16).reshape(places[name].dims)

    for i, node in enumerate(node for node in graph.node if node.op_type == "MoE"):
        taken = made_by[node.input[2]]  # [E, 2I, d] of the rows of all gates and ups
        shaped = made_by[taken.input[1]]
        added = made_by[shaped.input[0]]
        assert (taken.op_type, shaped.op_type, added.op_type) == ("Gather", "Reshape", "Add")
        first, turn, shape = (constants[name] for name in (*added.input, shaped.input[1]))
        gate_up = matrices(taken.input[0])[(first + turn).reshape(shape)]
        for part, found in (("gate", gate_up[:, ::2]), ("up", gate_up[:, 1::2]), ("down", matrices(node.input[4]))):
            names = [f"model.layers.{i}.mlp.experts.{e}.{part}_proj.weight" for e in range(EXPERTS)]
            np.testing.assert_array_equal(found, np.stack([stored[name].numpy() for name in names]))
    ids = torch.arange(2, 9)[None]
    save_file({name: tensor.to(torch.float16) for name, tensor in original.items()}, tmp_path / "source" / "h")
    (tmp_path / "source" / "h").rename(tmp_path / "source" / "model.safetensors")
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32)(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_experts_are_arranged_at_load_and_not_at_every_call(tmp_path: Path) -> None:
    """With the options of io.json; without folding the same graph does it while it runs."""
    save_source(tmp_path / "source", torch.bfloat16, **BLOCKWISE)
    made = write_variant(tmp_path / "source", tmp_path / "variant", form="cuda")
    for options, computed in ((session_options(form_named("cuda")), False), (SESSION_OPTIONS, True)):
        asked = onnxruntime.SessionOptions()
        asked.log_severity_level = 3
        asked.optimized_model_filepath = str(made / "optimized.onnx")
        for key, value in options.items():
            asked.add_session_config_entry(key, value)
        onnxruntime.InferenceSession(str(made / "text.onnx"), asked, providers=["CPUExecutionProvider"])
        graph = onnx.load(made / "optimized.onnx", load_external_data=False).graph
        made_by = {name: node for node in graph.node for name in node.output}
        fed = [node.input[2] for node in graph.node if node.op_type == "MoE"]
        # the CPU's kernel takes float32
        fed = [made_by[name].input[0] if name in made_by and made_by[name].op_type == "Cast" else name for name in fed]
        assert [name in made_by for name in fed] == [computed] * LAYERS


def test_gates_and_ups_that_lie_apart_are_stacked_anew(tmp_path: Path) -> None:
    """Ups behind everything else: each part of a block is an array, but gates and ups aren't the rows of one."""
    save_source(tmp_path / "source", torch.bfloat16, **BLOCKWISE)
    stacked = read_checkpoint(write_variant(tmp_path / "source", tmp_path / "variant", form="cuda"))
    assert is_stacked(stacked, "F16")
    ups_last = sorted(stacked.tensors.values(), key=lambda tensor: "up_proj" in tensor.name)
    shapes = {tensor.name: tensor.shape for tensor in ups_last}
    write_sparse(tmp_path / "apart", stacked.config, shapes, "F16")
    assert not is_stacked(read_checkpoint(tmp_path / "apart"), "F16")
    again = write_variant(tmp_path / "apart", tmp_path / "again", form="cuda")
    assert is_stacked(read_checkpoint(again), "F16")


def test_scattered_experts_cannot_be_fused(tmp_path: Path) -> None:
    from export.graph.decoder import text_graph

    save_source(tmp_path / "source", torch.bfloat16, **BLOCKWISE)
    with pytest.raises(CheckpointError, match="--form cuda"):
        text_graph(read_checkpoint(tmp_path / "source"), form_named("cuda"))


def test_float16_rounding_is_small(tmp_path: Path) -> None:
    """The cuda form as a GPU rounds it, by numpy: away from float32 by float16's precision and not by more."""
    save_source(tmp_path / "source", torch.bfloat16, **BLOCKWISE)
    made = write_variant(tmp_path / "source", tmp_path / "variant", form="cuda", k=EXPERTS)  # no expert can flip
    text = NumpySession(made / "text.onnx")
    ids = np.arange(2, 12)[None]
    cache = {name: value.astype(np.float16) for name, value in empty_cache(text, 1).items()}
    logits, _ = step(text, {"input_ids": ids}, np.ones_like(ids), cache)
    expected = torch_logits(load_model(made), ids, np.ones_like(ids))
    assert np.abs(logits - expected).max() <= 5e-3 * np.abs(expected).max()
    assert np.abs(logits - expected).max() > 0


def test_variants_of_a_cuda_variant_are_so_too(tmp_path: Path) -> None:
    """Their form is read off the weights: float16, the experts of a block back to back."""
    save_source(tmp_path / "source", torch.bfloat16, **BLOCKWISE)
    made = write_variant(tmp_path / "source", tmp_path / "variant", form="cuda")
    assert form_of(read_checkpoint(tmp_path / "source")).name == "cpu"
    plan = make_plan(read_checkpoint(made), Knobs(2, (0, 2)))
    assert plan.form.name == "cuda"
    assert plan.name == "variant-k2-b2"
    assert make_plan(read_checkpoint(made), Knobs(2, form="cpu")).form.name == "cpu"
    with pytest.raises(KnobError, match="float16"):
        make_plan(read_checkpoint(made), Knobs(2, dtype="float32"))
