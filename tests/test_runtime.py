"""The dynamic twins: k of every router, and blocks taken out, against models really made so. Difference exactly 0."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.support.molmo_parity import CASES, model_inputs
from tests.support.paths import FIXTURES
from transform.errors import KnobError
from transform.load import load_model
from transform.molmoe import MolmoEConfig, MolmoEForConditionalGeneration
from transform.molmoe.compatibility import CACHE
from transform.runtime import BlockMaskWrapper, find_decoder, knobs_at_run_time, moe_top_k, set_moe_top_k

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = 6
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "olmoe": (OlmoeForCausalLM, OlmoeConfig, {"num_experts": EXPERTS, "num_experts_per_tok": 3}),
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": EXPERTS, "num_experts_per_tok": 3}),
    "qwen2_moe": (
        Qwen2MoeForCausalLM, Qwen2MoeConfig,
        {"num_experts": EXPERTS, "num_experts_per_tok": 3, "moe_intermediate_size": 16,
         "shared_expert_intermediate_size": 16},
    ),
    "qwen3_moe": (
        Qwen3MoeForCausalLM, Qwen3MoeConfig,
        {"num_experts": EXPERTS, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "head_dim": 8},
    ),
}  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 0, 0]])
MASK = (IDS > 0).long()


def tiny(family: str, **changes: Any) -> Any:
    """A randomly initialised model; the same numbers for the same family."""
    model_class, config_class, settings = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SIZES, **settings, **changes})).eval()
    for parameter in model.parameters():  # transformers starts with tiny weights: make the blocks matter
        nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def logits(model: Any, **given: Any) -> torch.Tensor:
    return model(**{"input_ids": IDS, "attention_mask": MASK, **given}).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_top_k_equals_a_model_built_with_it(family: str) -> None:
    ours, theirs = tiny(family), tiny(family, num_experts_per_tok=1)
    before = logits(ours)
    assert set_moe_top_k(ours, 1) == SIZES["num_hidden_layers"]
    assert ours.config.num_experts_per_tok == 1
    assert torch.equal(logits(ours), logits(theirs))
    assert not torch.equal(logits(ours), before)


def test_top_k_per_block() -> None:
    ours, theirs = tiny("olmoe"), tiny("olmoe")
    ks = [6, 1, 2, 3, 4]
    assert set_moe_top_k(ours, ks) == 5
    for layer, k in zip(theirs.model.layers, ks, strict=True):
        layer.mlp.gate.top_k = k
    assert torch.equal(logits(ours), logits(theirs))


def test_top_k_is_undone_with_its_config() -> None:
    model = tiny("olmoe")
    before, config = logits(model), model.config.to_dict()
    with moe_top_k(model, [1, 2, 1, 2, 1]) as routers:
        assert routers == 5
        assert not torch.equal(logits(model), before)
        with pytest.raises(RuntimeError), moe_top_k(model, 2):
            raise RuntimeError
        assert [layer.mlp.gate.top_k for layer in model.model.layers] == [1, 2, 1, 2, 1]
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
    assert model.num_experts_per_tok == 3


def test_top_k_of_molmoe_goes_to_its_config() -> None:
    model = load_model(FIXTURES)
    layers, trained = model.config.n_layers, model.config.moe_top_k
    ks = [1 + i % 2 for i in range(layers)]
    with moe_top_k(model, ks):
        assert model.config.moe_top_k == ks
        theirs = MolmoEForConditionalGeneration.from_pretrained(
            FIXTURES, config=MolmoEConfig.from_pretrained(FIXTURES, moe_top_k=ks), dtype=torch.float32
        )
        given = model_inputs("text_only")
        assert torch.equal(logits(model, attention_mask=None, **given), logits(theirs, attention_mask=None, **given))
    assert model.config.moe_top_k == trained


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (0, r"from 1 to the experts, 6: got 0"),
        (7, r"from 1 to the experts, 6: got 7"),
        ([3, 3, 3, 3, 9], r"got 9 for router 4"),
        ([3, 3], r"got 2 for 5"),
        (True, r"whole number"),
        ("4", r"whole number"),
        (2.0, r"whole number"),
    ],
)
def test_impossible_top_k_is_refused(k: Any, message: str) -> None:
    model = tiny("olmoe")
    with pytest.raises(KnobError, match=message):
        set_moe_top_k(model, k)
    assert {layer.mlp.gate.top_k for layer in model.model.layers} == {3}


def test_models_that_cannot_honour_top_k_are_refused() -> None:
    dense = LlamaForCausalLM(LlamaConfig(**SIZES))
    with pytest.raises(KnobError, match="mixture-of-experts"):
        set_moe_top_k(dense, 1)
    fixed = PhimoeForCausalLM(PhimoeConfig(**SIZES, num_local_experts=EXPERTS, num_experts_per_tok=2))
    with pytest.raises(KnobError, match="PhimoeTopKRouter doesn't for 1"):
        set_moe_top_k(fixed, 1)
    assert {layer.mlp.router.top_k for layer in fixed.model.layers} == {2}


KEPT = [(1, 2, 3, 4), (0, 1, 2, 3), (0, 2, 4), (3,), (0, 1, 2, 3, 4)]


def pruned(model: Any, kept: tuple[int, ...]) -> Any:
    """A model built with fewer blocks, holding copies of the kept ones."""
    config = deepcopy(model.config)
    if isinstance(model, MolmoEForConditionalGeneration):
        theirs: Any = MolmoEForConditionalGeneration(MolmoEConfig(**{**config.to_dict(), "n_layers": len(kept)}))
        prefix = "model.transformer.layers."
    else:
        config.num_hidden_layers = len(kept)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[i] for i in kept]
        theirs, prefix = type(model)(config), "model.layers."
    new = {old: str(i) for i, old in enumerate(map(str, kept))}
    state = {}
    for name, tensor in model.state_dict().items():
        index, _, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix):
            state[name] = tensor
        elif index in new:
            state[f"{prefix}{new[index]}.{rest}"] = tensor
    theirs.load_state_dict(state)
    return theirs.eval()


def decoded(model: Any, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of cached decoding by hand after a padded prompt, and what generate makes of the left-padded one."""
    left = torch.stack([IDS[0], IDS[1].roll(3)]), torch.stack([MASK[0], MASK[1].roll(3)])
    ids, mask = left if side == "left" else (IDS, MASK)
    cache, seen = DynamicCache(config=model.config), []
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **{CACHE: cache})
        seen.append(out.logits)
        for token in (21, 22, 23):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            positions = (mask.cumsum(-1) - 1)[:, -1:]
            step = torch.full((2, 1), token)
            out = model(input_ids=step, attention_mask=mask, position_ids=positions, **{CACHE: cache})
            seen.append(out.logits)
    assert cache.get_seq_length() == mask.shape[1]
    made = model.generate(left[0], attention_mask=left[1], max_new_tokens=6, do_sample=False)
    return torch.cat(seen, 1), made


@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("family", [*FAMILIES, "llama"])
def test_masked_blocks_equal_pruned_ones(family: str, kept: tuple[int, ...]) -> None:
    if family == "llama":
        torch.manual_seed(0)
        ours: Any = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    else:
        ours = tiny(family)
    theirs, whole = pruned(ours, kept), logits(ours)
    config = ours.config.to_dict()
    wrapper = BlockMaskWrapper(ours, [i in kept for i in range(5)])
    assert wrapper.num_active_blocks == len(kept)
    with wrapper:
        assert ours.config.num_hidden_layers == len(kept)
        for side in ("left", "right"):
            for a, b in zip(decoded(ours, side), decoded(theirs, side), strict=True):
                assert torch.equal(a, b)
        assert torch.equal(logits(ours), whole) == (len(kept) == 5)
    assert torch.equal(logits(ours), whole)
    assert ours.config.to_dict() == config
    assert [layer.self_attn.layer_idx for layer in ours.model.layers] == list(range(5))


INNER: list[Callable[[Any], Any]] = [lambda m: m, lambda m: m.model, lambda m: m.model.transformer]


@pytest.mark.parametrize("part", INNER, ids=["outer", "inner", "decoder"])
def test_molmoe_without_blocks(part: Callable[[Any], Any]) -> None:
    ours = load_model(FIXTURES)
    layers = ours.config.n_layers
    case = next(name for name, record in CASES.items() if record["batch"] > 1)
    for kept in ((0, layers - 1), tuple(range(1, layers - 1))):
        theirs = pruned(ours, kept)
        with BlockMaskWrapper(part(ours), torch.tensor([i in kept for i in range(layers)])), torch.no_grad():
            assert torch.equal(ours(**model_inputs(case)).logits, theirs(**model_inputs(case)).logits)
            mine = ours.generate(**model_inputs(case), max_new_tokens=5, do_sample=False)
        assert torch.equal(mine, theirs.generate(**model_inputs(case), max_new_tokens=5, do_sample=False))
    assert ours.config.n_layers == layers == ours.model.transformer.config.num_hidden_layers
    assert ours.model.vision_backbone.image_vit.config.num_hidden_layers == len(
        ours.model.vision_backbone.image_vit.encoder.layers
    )


def test_knobs_combine_in_either_order() -> None:
    model = load_model(FIXTURES)
    layers, experts = model.config.n_layers, model.config.moe_num_experts
    ks, kept = [1 + i % experts for i in range(layers)], (0, layers - 1)
    mask, given = [i in kept for i in range(layers)], model_inputs("text_only")
    with moe_top_k(model, ks), BlockMaskWrapper(model, mask), torch.no_grad():
        assert model.config.moe_top_k == [ks[i] for i in kept]
        outside = model(**given).logits
    with BlockMaskWrapper(model, mask), moe_top_k(model, [ks[i] for i in kept]), torch.no_grad():
        inside = model(**given).logits
    assert torch.equal(outside, inside)
    trained = model.config.moe_top_k
    with knobs_at_run_time(model, kept, [ks[i] for i in kept]), torch.no_grad():
        assert torch.equal(outside, model(**given).logits)
    assert (len(find_decoder(model).layers), model.config.moe_top_k) == (layers, trained)
    wrapper = BlockMaskWrapper(model, mask).apply()
    assert set_moe_top_k(model, 1) == len(kept)
    wrapper.remove()
    assert model.config.moe_top_k == [1 if i in kept else trained for i in range(layers)]


def test_masks_nest_and_refuse_the_wrong_order() -> None:
    model = tiny("olmoe")
    theirs = pruned(model, (0, 4))
    first = BlockMaskWrapper(model, [True, True, False, True, True]).apply()
    assert first.apply() is first
    second = BlockMaskWrapper(model, [1, 0, 0, 1]).apply()
    assert torch.equal(logits(model), logits(theirs))
    with pytest.raises(KnobError, match="reverse order"):
        first.remove()
    second.remove()
    first.remove()
    first.remove()
    assert len(model.model.layers) == 5


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([True] * 4, "one bool per block, 5 here: got 4"),
        ([0, 1, 2, 3, 4], "one bool per block"),
        ([False] * 5, "at least one of the 5 blocks"),
    ],
)
def test_impossible_masks_are_refused(mask: Any, message: str) -> None:
    with pytest.raises(KnobError, match=message):
        BlockMaskWrapper(tiny("olmoe"), mask)


def test_a_module_without_blocks_is_refused() -> None:
    with pytest.raises(KnobError, match="Linear has none"):
        BlockMaskWrapper(nn.Linear(2, 2), [True])
