"""Every way to generate against the plain loop that has no cache, token for token; and arguments nobody reads."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.support.molmo_parity import CASES, model_inputs
from transform.load import load_model
from transform.molmoe import compatibility
from transform.molmoe.compatibility import CACHE
from transform.molmoe.versions import TESTED_TRANSFORMERS

NEW = 6
PICTURE = next(name for name, record in CASES.items() if record["kind"] != "text")
Inputs = dict[str, Tensor]


@pytest.fixture(scope="module")
def model(molmo: Path) -> Iterator[Any]:
    yield load_model(molmo)


def prompts() -> tuple[Tensor, Tensor]:
    """Two rows of text of which the second is three shorter, right-padded, and the mask."""
    ids = torch.randint(10, 240, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = 1, 0
    return ids, mask


def left(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    rows = [(torch.cat((row[m == 0], row[m == 1])), m.sort()[0]) for row, m in zip(ids, mask, strict=True)]
    return torch.stack([row for row, _ in rows]), torch.stack([m for _, m in rows])


Choose = Callable[[Tensor], Tensor]


def loop(model: Any, given: Inputs, steps: int = NEW, choose: Choose | None = None) -> Tensor:
    """Tokens [B, steps] without any cache: the whole sequence through `forward` for each; padding on the left."""
    pictures = {name: value for name, value in given.items() if name.startswith("image")}
    ids, mask = given["input_ids"], given["attention_mask"]
    for _ in range(steps):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **pictures).logits[:, -1]
        chosen = logits.argmax(-1, keepdim=True) if choose is None else choose(logits)
        ids = torch.cat((ids, chosen), 1)
        mask = torch.cat((mask, torch.ones_like(chosen)), 1)
    return ids[:, -steps:]


def made(model: Any, given: Inputs, **settings: Any) -> Tensor:
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False} | settings
    return model.generate(**given, **settings)[:, -NEW:]


@pytest.fixture(params=["one", "right", "left", "picture"])
def given(request: Any) -> tuple[Inputs, Inputs]:
    """(what is given to generate, the same padded on the left)."""
    if request.param == "picture":
        case = model_inputs(PICTURE)
        case = {**case, "attention_mask": (case["input_ids"] >= 0).long()}
        return case, case
    ids, mask = prompts()
    if request.param == "one":
        alone = {"input_ids": ids[:1], "attention_mask": mask[:1]}
        return alone, alone
    turned = dict(zip(("input_ids", "attention_mask"), left(ids, mask), strict=True))
    return ({"input_ids": ids, "attention_mask": mask} if request.param == "right" else turned), turned


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=repr)
def test_greedy(model: Any, given: tuple[Inputs, Inputs], settings: dict[str, Any]) -> None:
    assert made(model, given[0], **settings).tolist() == loop(model, given[1]).tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_by_either_name(model: Any, given: tuple[Inputs, Inputs], name: str) -> None:
    expected = loop(model, given[1])
    assert made(model, given[0], **{name: DynamicCache(config=model.config)}).tolist() == expected.tolist()
    ids, mask = given[1]["input_ids"], given[1]["attention_mask"]
    cache = DynamicCache(config=model.config)
    step = model(**given[1], **{name: cache}, use_cache=True)
    assert getattr(step, CACHE) is cache
    assert cache.get_seq_length() == ids.shape[1]
    for column in range(NEW):
        chosen = step.logits[:, -1].argmax(-1, keepdim=True)
        assert chosen[:, 0].tolist() == expected[:, column].tolist()
        mask = torch.cat((mask, torch.ones_like(chosen)), 1)
        step = model(input_ids=chosen, attention_mask=mask, **{name: cache}, use_cache=True)


@torch.no_grad()
def test_sampling_with_a_seed(model: Any, given: tuple[Inputs, Inputs]) -> None:
    torch.manual_seed(5)
    ours = made(model, given[0], do_sample=True, top_k=0, min_new_tokens=0, eos_token_id=-1)
    torch.manual_seed(5)
    theirs = loop(model, given[1], choose=lambda logits: torch.multinomial(logits.float().softmax(-1), 1))
    assert ours.tolist() == theirs.tolist()


@torch.no_grad()
def test_beams(model: Any, given: tuple[Inputs, Inputs]) -> None:
    """A search of our own, without a cache; only the best of it is compared."""
    beams, (ids, mask) = 3, (given[1]["input_ids"], given[1]["attention_mask"])
    pictures = {name: value for name, value in given[1].items() if name.startswith("image")}
    expected = []
    for row in range(len(ids)):
        images = {name: value[row : row + 1] for name, value in pictures.items()}
        alive = [(0.0, ids[row : row + 1])]
        for step in range(NEW):
            seen = torch.cat((mask[row : row + 1], torch.ones(1, step, dtype=torch.int64)), 1)
            longer = []
            for score, sequence in alive:
                logits = model(input_ids=sequence, attention_mask=seen, use_cache=False, **images).logits[0, -1]
                for value, token in zip(*logits.float().log_softmax(-1).topk(beams), strict=True):
                    longer.append((score + float(value), torch.cat((sequence, token.view(1, 1)), 1)))
            alive = sorted(longer, key=lambda pair: -pair[0])[:beams]
        expected.append(alive[0][1][0, -NEW:].tolist())
    ours = made(model, given[0], num_beams=beams, eos_token_id=-1, min_new_tokens=0)
    assert ours.tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_second_turn_on_a_kept_cache(model: Any, side: str, name: str) -> None:
    """The first turn's answers stay in the cache; the second question is shorter in one row."""
    first = left(*prompts())
    kept = DynamicCache(config=model.config)
    answered = model.generate(
        first[0], attention_mask=first[1], max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **{name: kept}
    )
    more = torch.randint(10, 240, (2, 5), generator=torch.Generator().manual_seed(4))
    seen = torch.ones_like(more)
    more[0, 3:], seen[0, 3:] = 1, 0
    turned = left(more, seen)
    question = turned if side == "left" else (more, seen)

    def whole(ids: Tensor, mask: Tensor) -> Inputs:
        answers = torch.ones_like(answered[:, first[1].shape[1] :])
        return {"input_ids": torch.cat((answered, ids), 1), "attention_mask": torch.cat((first[1], answers, mask), 1)}

    ours = made(model, whole(*question), **{name: kept})
    assert ours.tolist() == loop(model, whole(*turned)).tolist()
    assert kept.get_seq_length() == whole(*question)["input_ids"].shape[1] + NEW - 1


@torch.no_grad()
@pytest.mark.parametrize("kept", [1, 3, torch.tensor([0, 4])], ids=["last", "three", "chosen"])
def test_logits_to_keep(model: Any, given: tuple[Inputs, Inputs], kept: Any) -> None:
    every = model(**given[0]).logits
    expected = every[:, -kept:] if isinstance(kept, int) else every[:, kept]
    # a head over fewer rows is another matrix product, which rounds elsewhere: 2e-6 was seen
    torch.testing.assert_close(model(**given[0], logits_to_keep=kept).logits, expected, rtol=0, atol=1e-5)


def test_unknown_arguments_are_named(model: Any) -> None:
    ids = prompts()[0]
    with pytest.raises(TypeError, match=r"forward takes no pixel_values, window .*tested were transformers 5\.23 to"):
        model(input_ids=ids, pixel_values=None, window=3)
    with pytest.raises(ValueError, match="pixel_values"):
        model.generate(ids, max_new_tokens=1, pixel_values=torch.zeros(1))
    with pytest.raises(ValueError, match="two names of one thing"):
        model(input_ids=ids, cache=DynamicCache(), past_key_values=DynamicCache())


@torch.no_grad()
def test_known_arguments_are_read(model: Any) -> None:
    ids = prompts()[0]
    plain = model(input_ids=ids, cache_position=torch.arange(9))
    given = model(input_ids=ids, return_dict=False)
    assert isinstance(given, tuple)
    assert torch.equal(given[0], plain.logits)
    assert plain.hidden_states is None
    asked = model(input_ids=ids, output_hidden_states=True, output_router_logits=True)
    assert len(asked.hidden_states) == model.config.n_layers + 1
    assert len(asked.router_logits) == model.config.n_layers
    model.config.output_hidden_states = True
    try:
        assert len(model(input_ids=ids).hidden_states) == model.config.n_layers + 1
        assert model(input_ids=ids, output_hidden_states=False).hidden_states is None
    finally:
        model.config.output_hidden_states = False
    whole = model(input_ids=ids, labels=ids).loss
    assert torch.isclose(model(input_ids=ids, labels=ids, num_items_in_batch=2).loss, whole * ids[:, 1:].numel() / 2)


def test_layers_that_would_swallow_an_argument_are_refused() -> None:
    def forward(inputs_embeds: Tensor, **kwargs: Any) -> None: ...

    compatibility.insist_on_arguments(forward, ["inputs_embeds"])
    with pytest.raises(ImportError, match=r"has no cache, position_ids in .*forward and would swallow .* Install one"):
        compatibility.insist_on_arguments(forward, ["position_ids", "inputs_embeds", "cache"])


@pytest.mark.parametrize(("version", "warned"), [("5.22.2", 1), ("5.23.0", 0), ("5.24.1", 0), ("5.25.0.dev0", 1)])
def test_an_untested_version_is_named_once(version: str, warned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TESTED_TRANSFORMERS == ("5.23", "5.24")
    monkeypatch.setattr("transform.molmoe.compatibility.transformers.__version__", version)
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append  # type: ignore[assignment, method-assign]
    logger = logging.getLogger("transformers." + compatibility.__name__)
    logger.addHandler(handler)
    try:
        for _ in range(2):
            compatibility.warn_if_untested("MolmoE")
    finally:
        logger.removeHandler(handler)
    assert len(said) == warned
    assert all(f"transformers 5.23 to 5.24, this is {version}" in record.getMessage() for record in said)
