"""A block gets its arguments by the names it has, and is looked at for what it should have written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.olmoe.modeling_olmoe import OlmoeDecoderLayer

from importance.blocks import ResidentBlocks
from importance.calling import Memory, ScoringError, additive, call
from importance.chunks import from_batch
from importance.engine import Engine, Past, State, full_config
from transform.load import load_model
from transform.molmoe.compatibility import CACHE
from transform.runtime import find_decoder

ROWS, SIZE = 2, 7


@pytest.fixture(scope="module")
def model(olmoe: Path) -> Any:
    return load_model(olmoe)


class Named(OlmoeDecoderLayer):
    """The base of layers that name all that they are given, under the newer word for the memory."""

    def forward(
        self, hidden: Tensor, attention_mask: Any = None, position_embeddings: Any = None, cache: Any = None
    ) -> Tensor:
        return self.run(hidden, attention_mask, position_embeddings, cache)

    def run(self, hidden: Tensor, mask: Tensor, rotary: Any, memory: Any) -> Tensor:
        places = {"attention_mask": mask, "position_embeddings": rotary}
        return super().forward(hidden, **places, **{CACHE: memory})


class NamedAsBefore(Named):
    def forward(
        self, hidden: Tensor, attention_mask: Any = None, position_embeddings: Any = None, past_key_values: Any = None
    ) -> Tensor:
        return self.run(hidden, attention_mask, position_embeddings, past_key_values)


class Forgetful(Named):
    def run(self, hidden: Tensor, mask: Tensor, rotary: Any, memory: Any) -> Tensor:
        return super().run(hidden, mask, rotary, None)


class Repeating(Named):
    def run(self, hidden: Tensor, mask: Tensor, rotary: Any, memory: Any) -> Tensor:
        super().run(hidden, mask, rotary, memory)
        return super().run(hidden, mask, rotary, memory)


class Partial(Named):
    def run(self, hidden: Tensor, mask: Tensor, rotary: Any, memory: Any) -> Tensor:
        cut = hidden[:, 1:], mask[:, :, 1:, 1:], tuple(part[:, 1:] for part in rotary)
        return super().run(*cut, memory)


class Swallowing(OlmoeDecoderLayer):
    """Knows mask and positions; what else it is given goes unread."""

    def forward(
        self, hidden: Tensor, attention_mask: Any = None, position_embeddings: Any = None, **kwargs: Any
    ) -> Tensor:
        return super().forward(hidden, attention_mask=attention_mask, position_embeddings=position_embeddings)


class Maskless(OlmoeDecoderLayer):
    def forward(self, hidden: Tensor, position_embeddings: Any = None, **kwargs: Any) -> Tensor:
        return super().forward(hidden, position_embeddings=position_embeddings, **kwargs)


class Placeless(OlmoeDecoderLayer):
    def forward(self, hidden: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        return super().forward(hidden, attention_mask=attention_mask, **kwargs)


@pytest.fixture
def block(model: Any) -> Iterator[nn.Module]:
    """One block, to be turned into others with the same weights."""
    found = find_decoder(model).layers[0]
    yield found
    found.__class__ = OlmoeDecoderLayer


def run(model: Any, block: nn.Module, memory: Memory | None = None) -> Tensor:
    """The block on 2 rows of 7 drawn tokens."""
    hidden = torch.randn(ROWS, SIZE, 64, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(SIZE).expand(ROWS, -1)
    mask = additive(torch.ones(ROWS, SIZE, SIZE, dtype=torch.bool).tril(), torch.float32)
    with torch.no_grad():
        return call(block, hidden, mask, positions, find_decoder(model).rotary_emb(hidden, positions), memory)


@pytest.mark.parametrize("kind", [OlmoeDecoderLayer, Named, NamedAsBefore])
def test_keys_and_values_are_asked_for_under_the_layers_own_name(model: Any, block: nn.Module, kind: type) -> None:
    plain, expected = run(model, block), Memory()
    run(model, block, expected)
    block.__class__ = kind
    memory = Memory()
    assert torch.equal(run(model, block, memory), plain)
    assert memory.holds(ROWS, SIZE)
    assert torch.equal(memory.keys, expected.keys)
    assert torch.equal(memory.values, expected.values)


@pytest.mark.parametrize("kind", [Forgetful, Repeating, Partial])
def test_a_block_that_leaves_no_keys_and_values_is_refused(model: Any, block: nn.Module, kind: type) -> None:
    block.__class__ = kind
    with pytest.raises(ScoringError, match=rf"Named.forward \(transformers {transformers.__version__}\) .* cache"):
        run(model, block, Memory())


@pytest.mark.parametrize(
    ("kind", "lacking"), [(Maskless, "attention_mask"), (Placeless, "position_embeddings or position_ids")]
)
def test_a_block_that_would_swallow_its_mask_or_positions_is_refused(
    model: Any, block: nn.Module, kind: type, lacking: str
) -> None:
    block.__class__ = kind
    with pytest.raises(ScoringError, match=f"{kind.__name__}.forward .* has no {lacking}"):
        run(model, block)


def test_a_block_that_would_swallow_its_memory_is_refused_where_it_needs_one(model: Any, block: nn.Module) -> None:
    plain = run(model, block)
    block.__class__ = Swallowing
    assert torch.equal(run(model, block), plain)
    with pytest.raises(ScoringError, match=r"Swallowing\.forward .* has no cache or past_key_values"):
        run(model, block, Memory())


def test_the_engine_remembers_what_the_models_cache_holds(model: Any) -> None:
    ids = torch.randint(3, 128, (1, 11), generator=torch.Generator().manual_seed(2))
    engine = Engine(ResidentBlocks(model), full_config(model), remember=True)
    found: list[Past] = []

    def read(state: State, _logits: Tensor) -> None:
        found.extend(state.past)

    engine.run([from_batch(model, {"input_ids": ids})], [engine.full], read)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True)[CACHE]
    for ours, theirs in zip(found, cache.layers, strict=True):
        # with and without an explicit mask, attention rounds differently
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=0, atol=3e-6)
        torch.testing.assert_close(ours.values, theirs.values, rtol=0, atol=3e-6)
