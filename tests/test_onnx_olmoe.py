"""The emitted text graph against transformers' OLMoE: grouped heads, renormalised top-k, clipping, padding, 16 bits."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import OlmoeForCausalLM

from tests.support.graphs import empty_cache, greedy, session, step
from tests.support.models import load_stored, random_ids, save_source, torch_logits
from tests.support.variants import write_variant

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped_heads": {"num_key_value_heads": 2},
    "renormalised": {"norm_topk_prob": True},
    "clipped": {"clip_qkv": 0.5},
    "all_at_once": {"num_key_value_heads": 1, "norm_topk_prob": True, "clip_qkv": 0.7, "rope_theta": 500.0},
}


@pytest.mark.parametrize("form", FORMS)
def test_prefill_and_cached_decode_equal_transformers(form: str, tmp_path: Path) -> None:
    theirs = load_stored(save_source(tmp_path / "source", **FORMS[form]))
    text = session(write_variant(tmp_path / "source", tmp_path / "variant"), "text.onnx")
    ids = random_ids(2, 13)
    whole = torch_logits(theirs, ids, np.ones_like(ids))
    cache, start = empty_cache(text, 2), 0
    for stop in (6, 7, 11, 13):  # empty cache, one token, several tokens
        logits, cache = step(text, {"input_ids": ids[:, start:stop]}, np.ones((2, stop), np.int64), cache)
        np.testing.assert_allclose(logits, whole[:, start:stop], rtol=0, atol=1e-5)
        start = stop


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_equal_transformers(side: str, tmp_path: Path) -> None:
    theirs = load_stored(save_source(tmp_path / "source", num_key_value_heads=2))
    text = session(write_variant(tmp_path / "source", tmp_path / "variant"), "text.onnx")
    ids = random_ids(3, 12)
    mask = np.ones_like(ids)
    for row, length in enumerate((12, 5, 1)):
        mask[row, length:] = 0
    if side == "left":
        mask = mask[:, ::-1].copy()
    padded = np.where(mask == 1, ids, -1)  # padding of -1 and of any other id are the same
    logits, _ = step(text, {"input_ids": padded}, mask, empty_cache(text, 3))
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[mask == 1], torch_logits(theirs, ids, mask)[mask == 1], rtol=0, atol=1e-5)
    for row in range(3):
        alone = ids[row][mask[row] == 1][None]
        np.testing.assert_allclose(
            logits[row][mask[row] == 1], torch_logits(theirs, alone, np.ones_like(alone))[0], rtol=0, atol=1e-5
        )


def test_greedy_ids_equal_transformers_generate(tmp_path: Path) -> None:
    theirs = load_stored(save_source(tmp_path / "source", num_key_value_heads=2, norm_topk_prob=True))
    text = session(write_variant(tmp_path / "source", tmp_path / "variant"), "text.onnx")
    ids = random_ids(1, 9)
    ours, _ = greedy(text, lambda new: {"input_ids": new}, {"input_ids": ids}, np.ones_like(ids), 12)
    with torch.no_grad():
        expected = theirs.generate(
            torch.from_numpy(ids),
            attention_mask=torch.ones(1, 9, dtype=torch.long),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
        )[:, 9:]
    np.testing.assert_array_equal(ours, expected.numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_16_bit_weights_equal_the_same_weights_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = load_stored(save_source(tmp_path / "source", dtype, num_key_value_heads=2))
    variant = write_variant(tmp_path / "source", tmp_path / "variant")
    text = session(variant, "text.onnx")
    ids = random_ids(2, 13)
    whole = torch_logits(theirs, ids, np.ones_like(ids))
    logits, cache = step(text, {"input_ids": ids[:, :12]}, np.ones((2, 12), np.int64), empty_cache(text, 2))
    np.testing.assert_allclose(logits, whole[:, :12], rtol=0, atol=1e-5)
    logits, _ = step(text, {"input_ids": ids[:, 12:]}, np.ones((2, 13), np.int64), cache)
    np.testing.assert_allclose(logits, whole[:, 12:], rtol=0, atol=1e-5)

    onnx.checker.check_model(str(variant / "text.onnx"), full_check=True)
    kinds = [node.op_type for node in onnx.load(variant / "text.onnx", load_external_data=False).graph.node]
    assert kinds.count("Loop") == theirs.config.num_hidden_layers


@pytest.mark.parametrize(("keep", "k"), [([0, 2], None), (None, 1), ([1], 2), (None, 6)])
def test_fewer_blocks_and_experts_equal_transformers(keep: list[int] | None, k: int | None, tmp_path: Path) -> None:
    save_source(tmp_path / "source")
    variant = write_variant(tmp_path / "source", tmp_path / "variant", keep, k)
    theirs, info = OlmoeForCausalLM.from_pretrained(variant, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = random_ids(2, 10)
    text = session(variant, "text.onnx")
    logits, _ = step(text, {"input_ids": ids}, np.ones_like(ids), empty_cache(text, 2))
    np.testing.assert_allclose(logits, torch_logits(theirs.eval(), ids, np.ones_like(ids)), rtol=0, atol=1e-5)


def test_the_graph_is_valid_and_the_only_one(tmp_path: Path) -> None:
    save_source(tmp_path / "source", **FORMS["all_at_once"])
    variant = write_variant(tmp_path / "source", tmp_path / "variant")
    onnx.checker.check_model(str(variant / "text.onnx"), full_check=True)
    assert sorted(p.name for p in variant.glob("*.onnx")) == ["text.onnx"]
    assert [i.name for i in session(variant, "text.onnx").get_inputs()][:2] == ["input_ids", "attention_mask"]
