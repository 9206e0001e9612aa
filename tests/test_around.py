"""Windows and scales in scoring: questions that share a beginning, and answers that go on behind them, are what the
plain model gives for each by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from importance.around import Masks, around, attends_locally
from importance.blocks import ResidentBlocks
from importance.chunks import TEXT, Candidate, Chunk
from importance.engine import Engine, State, full_config
from importance.greedy import greedy_answers
from importance.metrics.gradient import compute_gradient_importance
from tests.support.decoders import VOCABULARY, WINDOW, write_decoder
from tests.support.stock_models import one_thread as one_thread
from transform.load import load_model
from transform.runtime import find_decoder

BEGIN, OWN, NEW = 9, 6, 5  # tokens of the shared beginning, of each question, of an answer
WINDOWED = ("gpt_oss", "mixtral", "granitemoe")  # one block in two, all, and none but scales


def forked(model: Any, ids: Tensor) -> Chunk:
    """A beginning [9] and two questions [2, 6] behind it, hidden from each other; the logits of each last token."""
    size = BEGIN + 2 * OWN
    allowed = torch.ones(size, size, dtype=torch.bool).tril()
    allowed[BEGIN + OWN :, BEGIN : BEGIN + OWN] = False
    places = torch.cat((torch.arange(BEGIN + OWN), torch.arange(BEGIN, BEGIN + OWN)))[None]
    where = torch.tensor([BEGIN + OWN - 1, size - 1])
    candidates = tuple(Candidate(sample, (sample,), ()) for sample in range(2))
    with torch.no_grad():
        hidden = model.get_input_embeddings()(ids[None])
    return Chunk(hidden, places, allowed[None], torch.full((1, size), TEXT), where, candidates)


@pytest.mark.parametrize("name", WINDOWED)
def test_questions_and_answers_are_those_of_the_plain_model(name: str, tmp_path: Path) -> None:
    model = load_model(write_decoder(name, tmp_path), attn_implementation="eager")
    ids = torch.randint(3, VOCABULARY - 2, (BEGIN + 2 * OWN,), generator=torch.Generator().manual_seed(2))
    blocks, full = ResidentBlocks(model), full_config(model)
    answers: dict[int, list[int]] = {}
    found: list[Tensor] = []

    def read(state: State, logits: Tensor) -> None:
        found.append(logits.clone())
        answers.update(greedy_answers(blocks, state, logits, model, frozenset(), NEW))

    Engine(blocks, full, remember=True).run([forked(model, ids)], [full], read)
    for sample in range(2):
        own = ids[BEGIN + sample * OWN : BEGIN + (sample + 1) * OWN]
        asked = torch.cat((ids[:BEGIN], own))[None]
        with torch.no_grad():
            theirs = model(input_ids=asked).logits[0, -1]
            generated = model.generate(
                asked, attention_mask=torch.ones_like(asked), max_new_tokens=NEW, do_sample=False, eos_token_id=None
            )
        torch.testing.assert_close(found[0][sample], theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
        assert answers[sample] == generated[0, asked.shape[1] :].tolist()


@pytest.mark.parametrize("name", WINDOWED)
def test_gradients_are_those_of_the_plain_model(name: str, tmp_path: Path) -> None:
    """First-order estimates from the plain model's own streams, by hooks."""
    model = load_model(write_decoder(name, tmp_path), attn_implementation="eager")
    ids = torch.randint(3, VOCABULARY - 2, (1, 4 * WINDOW), generator=torch.Generator().manual_seed(4))
    ours = compute_gradient_importance(model, {"input_ids": ids, "labels": ids})
    streams: list[Tensor] = []

    def keep(_block: Any, _given: object, gave: Any) -> None:
        stream = gave[0] if isinstance(gave, tuple) else gave
        stream.retain_grad()
        streams.append(stream)

    layers = find_decoder(model).layers
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    handles = [block.register_forward_hook(keep) for block in layers]
    entered: list[Tensor] = []
    handles.append(layers[0].register_forward_pre_hook(lambda _, given: entered.append(given[0])))
    logits = model(inputs_embeds=embedded).logits[0, :-1].double()
    torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="mean").backward()
    for handle in handles:
        handle.remove()
    before = [entered[0], *streams[:-1]]
    theirs = [
        float((stream.grad.double() * (start - stream).detach().double()).sum())
        for start, stream in zip(before, streams, strict=True)
        if stream.grad is not None
    ]
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_what_a_config_says_around_blocks() -> None:
    from transformers import GraniteMoeConfig, MixtralConfig, Qwen2MoeConfig

    granite = around(GraniteMoeConfig(embedding_multiplier=12.0, logits_scaling=6.0), 3)
    assert (granite.embedding, granite.logits, granite.windows) == (12.0, 6.0, (None,) * 3)
    assert around(MixtralConfig(sliding_window=5), 2).windows == (5, 5)
    assert around(MixtralConfig(sliding_window=5, max_position_embeddings=5), 2).windows == (None, None)
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    listed = Qwen2MoeConfig(num_hidden_layers=3, sliding_window=4, use_sliding_window=True, layer_types=kinds)
    assert around(listed, 3).windows == (None, 4, None)
    assert around(None, 2).windows == (None, None)


def test_windows_are_those_that_the_family_has() -> None:
    """Beyond what a run beforehand outgrows nothing else tells: keys of other families say nothing."""
    from transformers import Llama4TextConfig, LlamaConfig, MixtralConfig

    assert around(LlamaConfig(sliding_window=1000), 2).windows == (None, None)
    stray = MixtralConfig(num_hidden_layers=2, sliding_window=1000, layer_types=["full_attention"] * 2)
    assert around(stray, 2).windows == (1000, 1000)
    assert not attends_locally(LlamaConfig(sliding_window=1000))
    assert attends_locally(stray)
    assert attends_locally(Llama4TextConfig(num_hidden_layers=4))


def test_a_window_counts_places_not_columns() -> None:
    """Of a token behind the second question the first one's columns are nearer, and hidden."""
    places = torch.tensor([[0, 1, 2, 3, 2, 3]])
    allowed = torch.ones(1, 6, 6, dtype=torch.bool).tril()
    allowed[:, 4:, 2:4] = False
    masks = Masks(allowed, places, places, torch.float32)
    assert (masks.of(3)[0, 0, 5] == 0).tolist() == [False, True, False, False, True, True]
    assert (masks.of(None)[0, 0, 5] == 0).tolist() == [True, True, False, False, True, True]
