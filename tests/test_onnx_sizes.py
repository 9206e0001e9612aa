"""The MolmoE graphs against our PyTorch model at sizes that no fixture has: nothing may be hard-coded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.graphs import empty_cache, session, step
from tests.support.models import DECODER, write_odd
from tests.support.molmo_parity import formula_crops, kept_features
from tests.support.variants import write_variant
from transform.molmoe.modeling_molmoe import MolmoEForConditionalGeneration

ODD: dict[str, dict[str, Any]] = {
    "last_block": {"moe_top_k": [3, 1, 5], "vit_layers": [-1, -4], "layer_norm_eps": 1e-4, "rope_theta": 500.0},
    "from_the_front": {"moe_top_k": 1, "vit_layers": [1, 4], "vision_backbone": {"image_norm_eps": 1e-3}},
}


@pytest.mark.parametrize("form", ODD)
def test_other_sizes_equal_pytorch(form: str, tmp_path: Path) -> None:
    directory = write_variant(write_odd(tmp_path / "source", **ODD[form]), tmp_path / "variant")
    crops, masks = formula_crops(4, 3), np.random.default_rng(0).choice([-1.0, 0.0, 0.5, 1.0], (3, 576))
    masks = masks.astype(np.float32)
    count = 300  # kept features, in an order of their own
    index = np.full((3, 144), -100, np.int32)
    index.reshape(-1)[np.random.default_rng(1).permutation(432)[:count]] = np.arange(count) + 2
    end = DECODER["vocab_size"]
    ids = np.array([[end - 1, end, *[end + 2] * count, end + 1, 4, 5, 210, 6]])  # 210 is in the second table

    model = MolmoEForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.ones(ids.shape, dtype=torch.long),
            images=torch.from_numpy(crops)[None],
            image_masks=torch.from_numpy(masks)[None],
            image_input_idx=torch.from_numpy(index)[None],
        ).logits.numpy()

    given = {"images": crops, "image_masks": masks, "feature_index": kept_features(index)}
    image = session(directory, "vision.onnx").run(None, given)[0]
    assert np.abs(image).max() > 0.1
    x = session(directory, "embedding.onnx").run(None, {"input_ids": ids, "image_features": image})[0]
    text = session(directory, "text.onnx")
    ours, _ = step(text, {"inputs_embeds": x}, np.ones_like(ids), empty_cache(text, 1))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-5)
