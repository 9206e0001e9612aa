"""Models that the engine gets wrong are refused by name; those it gets right give what the plain model gives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Cohere2MoeConfig,
    ExaoneMoeConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GptOssConfig,
    GraniteMoeConfig,
    HunYuanMoEV1Config,
    Lfm2MoeConfig,
    MiniMaxConfig,
    MixtralConfig,
    OlmoeConfig,
    OlmoeForCausalLM,
    PhimoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from importance.blocks import ResidentBlocks
from importance.calling import ScoringError, additive
from importance.chunks import Chunk, from_batch
from importance.configurations import Config
from importance.engine import Engine, State, extend, full_config
from importance.metrics.gradient import compute_gradient_importance
from importance.streaming import StreamedBlocks
from transform.read import read_checkpoint
from transform.runtime import BlockMaskWrapper, find_decoder, moe_top_k
from transform.sizes import weight_bytes

SIZE, NEW = 40, 3


@dataclass(frozen=True)
class Case:
    """A config class, its settings beyond the common ones, and what the refusal says."""

    kind: type[PreTrainedConfig]
    settings: dict[str, Any]
    says: str = ""

    @property
    def name(self) -> str:
        return "-".join([self.kind.model_type, *(str(value) for value in self.settings.values())])


def tiny(case: Case) -> Any:
    """Four blocks with random weights large enough that blocks matter."""
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": 128, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "pad_token_id": 1, "bos_token_id": 3,
        "eos_token_id": 2,
    }  # fmt: skip
    if "num_local_experts" in case.settings or case.kind in (GptOssConfig, GraniteMoeConfig, MixtralConfig):
        common["num_local_experts"] = common.pop("num_experts")
    config = case.kind(**common | case.settings)
    model = Gemma4ForCausalLM(config) if case.kind is Gemma4TextConfig else Auto.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


WINDOW = {"sliding_window": 16}
WRONG = [
    Case(Cohere2MoeConfig, {}, "has logit_scale 0.0625"),
    Case(Gemma4TextConfig, {"sliding_window": 512, "final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
    Case(Qwen3NextConfig, {}, "has linear_attention"),
    Case(Lfm2MoeConfig, {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1}, "has conv"),
    Case(MiniMaxConfig, {"num_local_experts": 8}, "has linear_attention"),
]
RIGHT = [
    Case(OlmoeConfig, {}),
    Case(MixtralConfig, {}),
    Case(MixtralConfig, {"sliding_window": 512}),
    Case(MixtralConfig, WINDOW),
    Case(Qwen2MoeConfig, {**WINDOW, "use_sliding_window": True, "max_window_layers": 2}),
    Case(Qwen3MoeConfig, {**WINDOW, "use_sliding_window": True}),
    Case(GptOssConfig, WINDOW),
    Case(
        ExaoneMoeConfig, {**WINDOW, "n_group": 1, "topk_group": 1, "num_shared_experts": 1, "first_k_dense_replace": 0}
    ),
    Case(GraniteMoeConfig, {"logits_scaling": 4.0, "embedding_multiplier": 12.0}),
    Case(Qwen2MoeConfig, {**WINDOW, "use_sliding_window": False, "shared_expert_intermediate_size": 32}),
    Case(Qwen3MoeConfig, {}),
    Case(GptOssConfig, {"sliding_window": 512}),
    Case(GraniteMoeConfig, {"residual_multiplier": 0.2, "attention_multiplier": 0.1}),
    Case(HunYuanMoEV1Config, {"moe_topk": 2}),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_what_the_engine_gets_wrong_is_refused_by_name(case: Case) -> None:
    model = tiny(case)
    with pytest.raises(ScoringError) as refusal:
        ResidentBlocks(model)
    message = str(refusal.value)
    assert all(part in message for part in (type(model).__name__, case.says, "transform.BlockMaskWrapper")), message


def run(model: Any, chunk: Chunk, configs: list[Config], remember: bool = False) -> dict[int, tuple[State, Tensor]]:
    found = {}

    def read(state: State, logits: Tensor) -> None:
        found.update({config: (state, logits.clone()) for config in state.configs})

    Engine(ResidentBlocks(model), full_config(model), remember=remember).run([chunk], configs, read)
    return found


def chunk_of(model: Any, ids: Tensor) -> Chunk:
    """All of its logits but the last are read."""
    return from_batch(model, {"input_ids": ids, "labels": ids})


@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.name)
def test_what_the_engine_gets_right_equals_the_plain_model(case: Case) -> None:
    """Also other k, dropped blocks, and new tokens behind the keys and values that were remembered."""
    model = tiny(case)
    ids = torch.randint(4, 128, (1, SIZE + NEW), generator=torch.Generator().manual_seed(1))
    configs: list[Config] = [full_config(model), (2, 0, 2, 2), (1, 2, 3, 4), (3, 0, 1, 0)]
    found = run(model, chunk_of(model, ids[:, :SIZE]), configs, remember=True)
    for n, config in enumerate(configs):
        state, logits = found[n]
        keep = [k > 0 for k in config]
        with torch.no_grad(), moe_top_k(model, [k or 2 for k in config]), BlockMaskWrapper(model, keep):
            theirs = model(input_ids=ids).logits[0]
        # with and without an explicit mask, and in parts, sums are taken in another order
        torch.testing.assert_close(logits, theirs[: SIZE - 1], rtol=0, atol=2e-5)
        hidden = model.get_input_embeddings()(ids[:, SIZE:]).detach()
        allowed = torch.ones(1, NEW, SIZE + NEW, dtype=torch.bool).tril(SIZE)
        positions = torch.arange(SIZE, SIZE + NEW)[None]
        with torch.no_grad():
            keys = torch.arange(SIZE + NEW)[None]
            new, _ = extend(ResidentBlocks(model), state.past, hidden, positions, allowed, keys)
        torch.testing.assert_close(new, theirs[SIZE:], rtol=0, atol=2e-5)


@pytest.fixture
def olmoe_tiny() -> Any:
    return tiny(RIGHT[0])


def tokens(size: int = SIZE) -> Tensor:
    return torch.randint(4, 128, (1, size), generator=torch.Generator().manual_seed(1))


def scaled_embedding(model: Any) -> None:
    decoder = find_decoder(model)
    decoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: ((), kwargs | {"inputs_embeds": 2 * kwargs["inputs_embeds"]}), with_kwargs=True
    )


def scaled_logits(model: Any) -> None:
    class Scaled(OlmoeForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            found.logits = found.logits * 1.001
            return found

    model.__class__ = Scaled


def own_window(model: Any) -> None:
    """A mask of the model's own, 16 tokens back; one that no name tells."""
    decoder = find_decoder(model)

    def masked(_module: Any, _args: Any, kwargs: dict[str, Any]) -> Any:
        size = kwargs["inputs_embeds"].shape[1]
        seen = torch.ones(1, size, size, dtype=torch.bool).tril().triu(-15)
        return (), kwargs | {"attention_mask": additive(seen, torch.float32)}

    decoder.register_forward_pre_hook(masked, with_kwargs=True)


def shifted_positions(model: Any) -> None:
    decoder = find_decoder(model)
    decoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: (
            (),
            kwargs | {"position_ids": 2 * torch.arange(kwargs["inputs_embeds"].shape[1])[None]},
        ),
        with_kwargs=True,
    )


@pytest.mark.parametrize("change", [scaled_embedding, scaled_logits, own_window, shifted_positions])
@pytest.mark.parametrize("size", [5, SIZE])
def test_what_no_name_tells_is_found_on_the_first_tokens(olmoe_tiny: Any, change: Any, size: int) -> None:
    """Also where samples are shorter than what is compared."""
    run(olmoe_tiny, chunk_of(olmoe_tiny, tokens(size)), [full_config(olmoe_tiny)])
    change(olmoe_tiny)
    with pytest.raises(ScoringError, match=r"within 0\.0001 of the largest: on 64 tokens those of \w+ differ by"):
        run(olmoe_tiny, chunk_of(olmoe_tiny, tokens(size)), [full_config(olmoe_tiny)])
    with pytest.raises(ScoringError, match="model's own logits"):
        compute_gradient_importance(olmoe_tiny, {"input_ids": tokens(size), "labels": tokens(size)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_agree_as_well(olmoe_tiny: Any, dtype: torch.dtype) -> None:
    model = olmoe_tiny.to(dtype)
    run(model, chunk_of(model, tokens()), [full_config(model)])
    assert model.config._attn_implementation == "sdpa"  # as it was before the comparison
    scaled_embedding(model)
    with pytest.raises(ScoringError, match="model's own logits"):
        run(model, chunk_of(model, tokens()), [full_config(model)])


def test_streamed_blocks_are_compared_on_their_first_block(olmoe: Path) -> None:
    """Which is not read again for it, and the model stays without blocks."""
    checkpoint = read_checkpoint(olmoe)
    blocks, full = StreamedBlocks(checkpoint), checkpoint.settings.top_k
    chunk = chunk_of(blocks.model, tokens())
    engine = Engine(blocks, full)
    engine.run([chunk], [full], lambda _state, _logits: None)
    assert engine.report.bytes_read == weight_bytes(checkpoint)
    assert len(find_decoder(blocks.model).layers) == 0
    wrong = StreamedBlocks(checkpoint)
    scaled_embedding(wrong.model)
    with pytest.raises(ScoringError, match="model's own logits"):
        Engine(wrong, full).run([chunk], [full], lambda _state, _logits: None)


def test_a_k_that_is_built_in_is_refused_only_where_another_is_asked_for() -> None:
    model = tiny(Case(PhimoeConfig, {"num_local_experts": 8}))
    chunk, full = chunk_of(model, tokens()), full_config(model)
    run(model, chunk, [full, (2, 0, 2, 2)])
    with pytest.raises(ScoringError, match=r"gives the same for 1 as for its own 2, PhimoeTopKRouter"):
        run(model, chunk, [full, (2, 1, 2, 2)])
    blocks = ResidentBlocks(model)  # also where the first run asked for none
    engine = Engine(blocks, full)
    engine.run([chunk], [full], lambda _state, _logits: None)
    with pytest.raises(ScoringError, match="built in"):
        engine.run([chunk], [(2, 1, 2, 2)], lambda _state, _logits: None)


def test_blocks_that_cannot_be_called_so_are_one_line() -> None:
    """Its rotary embedding wants the kind of each block."""
    config = {"sliding_window": 512, "layer_types": ["full_attention"] * 4, "enable_moe_block": False}
    model = tiny(Case(Gemma4TextConfig, config | {"hidden_size_per_layer_input": 0}))
    with pytest.raises(ScoringError, match=r"blocks one by one.*Gemma4ForCausalLM can't be called so \(\w+: .*\)"):
        run(model, chunk_of(model, tokens()), [full_config(model)])
