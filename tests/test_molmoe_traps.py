"""The reference's known traps, one test each, named by its number in the specification (1, 2, 3, 6, 7, 10, 14)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.molmo_parity import CASES, model_inputs, outputs, selected
from transform.errors import KnobError
from transform.load import load_model
from transform.molmoe import MolmoEConfig, MolmoEForConditionalGeneration
from transform.molmoe.compatibility import CACHE
from transform.molmoe.preprocessing import preprocess
from transform.runtime import set_moe_top_k

PADDED = next(name for name, record in CASES.items() if record["batch"] > 1)


@pytest.fixture(scope="module")
def model(molmo: Path) -> Any:
    return load_model(molmo)


@torch.no_grad()
def test_trap_1_pixels_that_round_onto_the_padding_marker(molmo: Path, model: Any) -> None:
    dark = np.full((300, 280, 3), (54, 50, 34), np.uint8)
    cut = preprocess(dark)
    images, masks = torch.from_numpy(cut.images)[None], torch.from_numpy(cut.image_masks)[None]
    exact = model.model.vision_backbone.vit_features(images)
    for dtype in ("bfloat16", "float16"):
        low = load_model(molmo, dtype)
        tower = low.model.vision_backbone.vit_features
        rounded = images.to(low.dtype)
        assert not (images == -1).any()
        assert dtype == "float16" or (rounded == -1).flatten(2).any(-1).all()  # every crop would be thrown away
        for given in (images, rounded):
            assert (tower(given).float() - exact).abs().max() < 0.1 * exact.abs().max()
        filled = torch.cat([rounded, torch.full_like(rounded[:, :1], -1)], 1)
        assert not tower(filled)[:, -1].any()  # real batch padding still is
        assert not tower(filled.float())[:, -1].any()
        assert low.get_image_features(images, masks.to(low.dtype)).isfinite().all()


@torch.no_grad()
def test_trap_2_masks_are_shifted_by_one_crop(model: Any) -> None:
    case = next(name for name, record in CASES.items() if record["kind"] == "end_to_end")
    given = model_inputs(case)
    masks = given["image_masks"]
    assert (masks[:, -1] == -1).all()  # the global view's row comes last, and says "partial"
    theirs = outputs()[f"{case}/image_features"]
    ours = model.get_image_features(given["images"], masks)
    repaired = model.get_image_features(given["images"], masks.roll(1, 1))
    assert (ours - theirs).abs().max() < 5e-4
    assert (repaired - theirs).abs().max() > 1


@torch.no_grad()
def test_trap_3_features_stay_in_their_own_row(model: Any) -> None:
    given = model_inputs(PADDED)
    assert (given["image_input_idx"] < 0).any()
    together = model.embed(**given)
    for row, (length, crops) in enumerate(
        zip(CASES[PADDED]["seq_len"], CASES[PADDED]["num_crops_incl_global"], strict=True)
    ):
        alone = {"input_ids": given["input_ids"][row : row + 1, :length]}
        if crops:
            names = ("images", "image_masks", "image_input_idx")
            alone |= {name: given[name][row : row + 1, :crops] for name in names}
        torch.testing.assert_close(together[row, :length], model.embed(**alone)[0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_trap_6_top_k(molmo: Path) -> None:
    model, given = load_model(molmo), model_inputs("text_only")
    trained, experts = model.config.moe_top_k, model.config.moe_num_experts
    before = model(**given).logits
    model.config.moe_top_k = 1  # the routers have their own copy
    assert torch.equal(model(**given).logits, before)
    with pytest.raises(KnobError, match=f"from 1 to the experts, {experts}: got {experts + 1}"):
        set_moe_top_k(model, experts + 1)
    assert set_moe_top_k(model, 1) == model.config.n_layers
    after = selected("text_only", model(**given).logits)
    torch.testing.assert_close(after, outputs()["text_only/k1/logits_sel"], rtol=0, atol=1e-4)
    kept_mass = []
    router = model.model.transformer.layers[0].mlp.gate
    tokens = model.embed(given["input_ids"])[0]
    for k in (1, trained, experts):
        set_moe_top_k(model, k)
        kept_mass.append(router(tokens)[1].sum(-1).mean().item())
    assert kept_mass[0] < kept_mass[1] < kept_mass[2] == pytest.approx(1)  # never renormalised


def test_trap_7_the_pad_embedding_has_the_vision_towers_width(molmo: Path, model: Any) -> None:
    config = MolmoEConfig.from_pretrained(molmo)
    width = config.vision("image_emb_dim") * len(config.vit_layers)
    assert model.model.vision_backbone.pad_embed.shape == (2, width)
    with pytest.raises(ValueError, match="n_kv_heads must be null or n_heads"):
        MolmoEConfig(n_kv_heads=4)
    with pytest.raises(ValueError, match="vit_layers must lie within the 23 vision blocks"):
        _ = MolmoEConfig(vit_layers=[-2, -24]).feature_blocks
    assert MolmoEConfig().feature_blocks == (21, 14)


@torch.no_grad()
def test_trap_10_images_do_not_go_with_a_filled_cache(model: Any) -> None:
    given = model_inputs(next(name for name, record in CASES.items() if record["kind"] == "formula_crops"))
    out = model(**given, use_cache=True)
    assert out[CACHE].get_seq_length() == given["input_ids"].shape[1]
    with pytest.raises(ValueError, match="not with a filled cache"):
        model(**given, **{CACHE: out[CACHE]})
    with pytest.raises(ValueError, match="image_masks and image_input_idx"):
        model(given["input_ids"], images=given["images"])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()


def test_trap_14_mlp_hidden_size_is_twice_the_experts_and_the_projectors_width() -> None:
    with torch.device("meta"):
        released = MolmoEForConditionalGeneration(MolmoEConfig())
        wide = MolmoEForConditionalGeneration(
            MolmoEConfig(d_model=64, n_heads=4, n_layers=1, moe_num_experts=2, moe_top_k=1, mlp_hidden_size=96)
        )
    assert sum(parameter.numel() for parameter in released.parameters()) == 7_221_875_712
    for model, inner in ((released, 1024), (wide, 48)):
        backbone, experts = model.model.vision_backbone, model.model.transformer.layers[0].mlp.experts
        assert backbone.image_projector.w1.weight.shape == (inner, 1024)
        assert experts.gate_up_proj.shape[1] == 2 * inner
        assert experts.down_proj.shape[2] == inner
