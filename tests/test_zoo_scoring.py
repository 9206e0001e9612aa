"""Scoring of every family: the engine's logits are the plain model's with the same knobs, or the family is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from importance.blocks import Blocks, ResidentBlocks
from importance.calling import ScoringError
from importance.chunks import Chunk, from_batch
from importance.configurations import Config
from importance.engine import Engine, State, full_config
from importance.streaming import StreamedBlocks
from tests.support.stock_models import one_thread as one_thread
from tests.support.zoo import BLOCKS, ZOO, make
from transform.load import load_model
from transform.read import read_checkpoint
from transform.runtime import knobs_at_run_time

CORE = ("qwen3_moe", "mixtral", "ernie4_5_moe")
# Why the others are refused, in the words of the refusal.
REFUSED = {
    "qwen3_next": "has linear_attention",
    "qwen3_5_moe": "has linear_attention",
    "minimax": "has linear_attention",
    "granitemoehybrid": "has linear_attention|embedding_multiplier",
    "lfm2_moe": "has no norm|has conv",
    "llama4_text": "attention_chunk_size 8",
    "granitemoe_swa": "layer_rope_theta",
    "mimo_v2_flash": "can't be called so",
    "cohere2_moe": "logit_scale 0.0625",
    "nemotron_h": "has no norm|has linear_attention",
    "gemma4": "can't be called so|hidden_size_per_layer_input",
    "jamba": "has no norm|has linear_attention",
    "deepseek_v2": "can't be called so",
    "molmo2": "own logits|can't be called so",
    "laguna": "can't be called so",
    "mellum": "can't be called so",
    "gemma4_text": "can't be called so",
    "deepseek_v32": "has indexed_attention",
    "axk2": "has indexed_attention",
    "kimi_linear": "has linear_attention",
    "bailing_hybrid": "has linear_attention",
    "qwen3_5_moe_text": "has linear_attention",
    "lara_mini": "has linear_attention",
}
ROWS = [pytest.param(name, marks=() if name in CORE else pytest.mark.extra) for name in ZOO]


@pytest.mark.parametrize("name", ROWS)
def test_logits_are_the_plain_models_or_the_family_is_refused(name: str, tmp_path: Path) -> None:
    source = make(name, tmp_path / "source")
    model = load_model(source)
    ids = torch.randint(3, 190, (1, 24), generator=torch.Generator().manual_seed(7))
    chunk = from_batch(model, {"input_ids": ids, "labels": ids})
    full = full_config(model)
    makers: tuple[Callable[[], Blocks], ...] = (
        lambda: ResidentBlocks(model), lambda: StreamedBlocks(read_checkpoint(source)),
    )  # fmt: skip
    if reason := REFUSED.get(name.partition("-")[0]):
        for made in makers:
            with pytest.raises(ScoringError, match=reason):
                _run(made(), full, chunk, [full])
        return
    lower = full if ZOO[name].fixed else tuple(1 if k > 1 else k for k in full)
    configs: list[Config] = [full, (*full[:3], 0, *full[4:]), (*lower[: BLOCKS - 1], 0)]
    for made in makers:
        for config, ours in _run(made(), full, chunk, configs).items():
            keep = [i for i, k in enumerate(config) if k]
            sparse = [i for i in range(BLOCKS) if read_checkpoint(source).settings.experts_of[i]]
            with torch.no_grad(), knobs_at_run_time(model, keep, [config[i] if i in sparse else 0 for i in keep]):
                theirs = model(input_ids=ids).logits[0, :-1]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def _run(blocks: Blocks, full: Config, chunk: Chunk, configs: list[Config]) -> dict[Config, Tensor]:
    found: dict[Config, Tensor] = {}

    def read(state: State, logits: Tensor) -> None:
        found.update({configs[at]: logits.clone() for at in state.configs})

    Engine(blocks, full).run([chunk], configs, read)
    return found
