"""The engine gives what a plain loop over configurations gives, and computes each block once per state before it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from importance.ablation import measure, single_ablations
from importance.blocks import ResidentBlocks
from importance.calling import ScoringError, additive
from importance.chunks import Chunk, from_batch, pack_chunks
from importance.configurations import Config, block_evaluations, without
from importance.engine import Engine, State, _bytes, full_config
from importance.evaluate import evaluate, prepare
from importance.objectives import Divergence, Generated, NegativeLogLikelihood, Objective, TeacherForced
from importance.prompts import load_processor
from importance.samples import Sample, SamplesError
from importance.streaming import StreamedBlocks
from importance.tasks import METRICS
from transform.load import load_model
from transform.packed import write_packed
from transform.packed_layout import Packing
from transform.read import read_checkpoint
from transform.runtime import BlockMaskWrapper, find_decoder, moe_top_k
from transform.sizes import weight_bytes
from transform.source import DEFAULT

FULL = (4,) * 6
CONFIGS = [
    *single_ablations(FULL),
    (4, 0, 4, 0, 4, 4),
    (4, 0, 4, 2, 4, 4),
    (4, 0, 0, 0, 0, 4),
    (0, 4, 4, 4, 4, 0),
    (1, 2, 3, 4, 5, 6),
]


@pytest.fixture(scope="module")
def model(olmoe: Path) -> Any:
    return load_model(olmoe)


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Two rows of different lengths, the last three tokens of each labelled."""
    torch.manual_seed(3)
    ids = torch.randint(3, 128, (2, 11))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    labels = torch.full_like(ids, -100)
    labels[0, 8:], labels[1, 5:8] = ids[0, 8:], ids[1, 5:8]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def naive_logits(model: Any, chunk: Chunk, config: Config) -> Tensor:
    """The whole model on a chunk, blocks masked and k set at run time."""
    keep = [k > 0 for k in config]
    ks = [k if k else full for k, full in zip(config, full_config(model), strict=True)]
    with torch.no_grad(), moe_top_k(model, ks), BlockMaskWrapper(model, keep):
        hidden = find_decoder(model)(
            inputs_embeds=chunk.hidden,
            attention_mask=additive(chunk.allowed, torch.float32),
            position_ids=chunk.positions,
            use_cache=False,
        ).last_hidden_state
        return model.get_output_embeddings()(hidden.flatten(0, 1)[chunk.where])


def logits_of(engine: Engine, chunks: Sequence[Chunk], configs: Sequence[Config], **kwargs: Any) -> dict[Any, Tensor]:
    found = {}

    def read(state: State, logits: Tensor) -> None:
        for config in state.configs:
            found[state.number, tuple(configs[config])] = logits.clone()

    engine.run(chunks, configs, read, **kwargs)
    return found


def engine_of(model: Any, **kwargs: Any) -> Engine:
    return Engine(ResidentBlocks(model), full_config(model), **kwargs)


def test_equals_the_plain_loop_exactly(model: Any, batch: dict[str, Tensor]) -> None:
    chunk = from_batch(model, batch)
    engine = engine_of(model, tokens_per_call=0)
    found = logits_of(engine, [chunk], CONFIGS)
    for config in CONFIGS:
        assert torch.equal(found[0, config], naive_logits(model, chunk, config)), config
    assert engine.report.block_evaluations == block_evaluations(CONFIGS) == engine.report.calls


def test_stacked_calls_are_fewer_and_equal_up_to_rounding(model: Any, batch: dict[str, Tensor]) -> None:
    chunk = from_batch(model, batch)
    engine = engine_of(model, tokens_per_call=100)
    plain = logits_of(engine_of(model, tokens_per_call=0), [chunk], CONFIGS)
    stacked = logits_of(engine, [chunk], CONFIGS)
    assert engine.report.calls < engine.report.block_evaluations == block_evaluations(CONFIGS)
    for key, logits in plain.items():
        # other batch sizes, other blocking in matrix products: a few ulp
        torch.testing.assert_close(stacked[key], logits, rtol=0, atol=3e-6)


@pytest.mark.parametrize("remember", [False, True])
def test_little_memory_splits_the_walk_and_changes_nothing(
    model: Any, batch: dict[str, Tensor], remember: bool
) -> None:
    chunk = from_batch(model, batch)
    plain = logits_of(engine_of(model, tokens_per_call=0), [chunk, chunk], CONFIGS)
    engine = engine_of(model, tokens_per_call=0, live_bytes=1, remember=remember)
    split = logits_of(engine, [chunk, chunk], CONFIGS)
    assert engine.report.block_evaluations == 2 * block_evaluations(CONFIGS)
    assert plain.keys() == split.keys()
    assert all(torch.equal(plain[key], split[key]) for key in plain)


class Weighed(Engine):
    """Takes down what the states behind each block hold."""

    def _compute(self, level: int, block: Any, states: list[State]) -> None:
        super()._compute(level, block, states)
        peaks.append(_bytes(states))


peaks: list[int] = []


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("remember", [False, True])
def test_states_keep_to_the_budget(model: Any, batch: dict[str, Tensor], remember: bool, together: bool) -> None:
    chunk = from_batch(model, batch)
    budget = 4 * chunk.hidden.nbytes * (8 if remember else 1)  # a state's own keys and values come with it
    found = {}
    for live in (1 << 30, budget):
        peaks.clear()
        engine = Weighed(ResidentBlocks(model), FULL, live_bytes=live, remember=remember)
        logits_of(engine, [chunk], CONFIGS, together=together)
        found[live] = max(peaks)
    assert found[budget] <= budget < found[1 << 30]


def test_padding_and_packing_change_nothing(model: Any, batch: dict[str, Tensor]) -> None:
    """A row of a padded batch is what it is alone, up to rounding."""
    chunk = from_batch(model, batch)
    found = logits_of(engine_of(model), [chunk], [FULL])[0, FULL]
    with torch.no_grad():
        alone = model(input_ids=batch["input_ids"][1:, :8]).logits[0, 4:7]
    torch.testing.assert_close(found[3:], alone, rtol=0, atol=3e-6)


@pytest.fixture(scope="module")
def nano() -> Any:
    return load_model(DEFAULT)


@pytest.fixture(scope="module")
def prepared(nano: Any) -> Any:
    picture = np.random.default_rng(0).integers(0, 256, (60, 130, 3), np.uint8)
    samples = [
        Sample("a", (picture,), "What colour is it?", ("red", "blue", "red")),
        Sample("b", (picture,), "How many?", ("3",)),
        Sample("c", (), "Say something long.", ("circle",)),
        Sample("d", (picture,), "Where?", ("left of the ring",)),
        Sample("e", (), "What?", ("red",)),
    ]
    return prepare(nano, load_processor(read_checkpoint(DEFAULT)), samples, tokens=288)


def references(model: Any, prepared: Any) -> list[list[list[int]]]:
    prompts = prepared.prompts
    return [[prompts.answer(model, s, answer) for answer in dict.fromkeys(s.answers)] for s in prepared.samples]


SOME: list[Config] = [(8,) * 16, without((8,) * 16, [0]), without((8,) * 16, [3, 4, 9]), (2,) * 16]


def test_generated_answers_are_those_of_evaluate(nano: Any, prepared: Any) -> None:
    samples, prompts = prepared.samples, prepared.prompts
    graded = METRICS["exact_match"]
    objective = Generated(
        ResidentBlocks(nano),
        lambda ids, sample: graded(prompts.text(ids), samples[sample]),
        nano,
        prompts.ends(nano),
        max_new_tokens=6,
    )
    engine = engine_of(nano, remember=True)
    answers: dict[tuple[int, int], str] = {}

    def read(state: State, logits: Tensor) -> None:
        objective.read(state, logits)
        for config in state.configs:
            answers.update({(config, sample): prompts.text(ids) for sample, ids in objective.answers.items()})

    engine.run(pack_chunks(nano, prepared, references(nano, prepared)), SOME, read)
    for n, config in enumerate(SOME):
        k = max(config)
        with moe_top_k(nano, k), BlockMaskWrapper(nano, [entry > 0 for entry in config]):
            theirs = evaluate(nano, prepared, max_new_tokens=6).answers
        assert [answers[n, sample] for sample in range(len(samples))] == list(theirs), config


def test_likelihoods_are_those_of_each_answer_alone(nano: Any, prepared: Any) -> None:
    """Packed behind one picture, hidden from each other: the same as one sequence per answer."""
    chunks = list(pack_chunks(nano, prepared, references(nano, prepared)))
    losses = measure(engine_of(nano), chunks, SOME, NegativeLogLikelihood())
    exact = measure(engine_of(nano), chunks, SOME, TeacherForced(prepared.prompts.ends(nano)))
    prefixes = {index: prefix for group, prefix in prepared.prefixes() for index, _ in group.questions}
    questions = {index: ids for group, _ in prepared.prefixes() for index, ids in group.questions}
    for n, config in enumerate(SOME):
        with moe_top_k(nano, max(config)), BlockMaskWrapper(nano, [entry > 0 for entry in config]):
            for sample, answers in enumerate(references(nano, prepared)):
                each, right = [], []
                for answer in answers:
                    text = torch.tensor([[*questions[sample], *answer[:-1]]])
                    embedded = torch.cat((prefixes[sample], nano.get_input_embeddings()(text)), 1)
                    with torch.no_grad():
                        logits = nano(inputs_embeds=embedded).logits[0, -len(answer) :]
                    logp = logits.double().log_softmax(-1)
                    each.append(-logp[range(len(answer)), answer].mean().item())
                    right.append(logits.argmax(-1).tolist() == answer)
                assert losses[n, sample] == pytest.approx(min(each), abs=2e-5)
                assert exact[n, sample] == (0.0 if any(right) else 1.0)


def test_divergence_from_itself_is_zero_and_of_a_poorer_model_above(nano: Any, prepared: Any) -> None:
    chunks = pack_chunks(nano, prepared, references(nano, prepared))
    losses = measure(engine_of(nano), chunks, SOME, Divergence())
    assert (losses[0] == 0).all()
    assert (losses[1:] > 0).all()


@pytest.mark.parametrize("source", ["olmoe", "nano", "quantised"])
def test_streamed_blocks_give_the_same_and_are_read_once(
    source: str, olmoe: Path, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    path = olmoe if source == "olmoe" else DEFAULT
    if source == "quantised":
        write_packed(read_checkpoint(path), tmp_path, Packing(4, tables=4, vision=8))
        path = tmp_path
    checkpoint = read_checkpoint(path)
    whole = load_model(path)
    if source == "olmoe":
        chunks = [from_batch(whole, batch), from_batch(whole, batch, 2)]
    else:
        images = {name: value for name, value in batch.items() if name != "labels"}
        chunks = [from_batch(whole, images)]
    full = full_config(whole)
    configs = single_ablations(full)
    ours = logits_of(Engine(StreamedBlocks(checkpoint), full, tokens_per_call=0), chunks, configs, together=True)
    theirs = logits_of(Engine(ResidentBlocks(whole), full, tokens_per_call=0), chunks, configs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    blocks = StreamedBlocks(checkpoint)
    engine = Engine(blocks, full)
    engine.run(chunks, configs, lambda _state, _logits: None, together=True)
    assert engine.report.bytes_read == weight_bytes(checkpoint)


def test_more_chunks_than_memory_take_more_passes(olmoe: Path, batch: dict[str, Tensor]) -> None:
    checkpoint = read_checkpoint(olmoe)
    chunk = from_batch(load_model(olmoe), batch)
    blocks = StreamedBlocks(checkpoint)
    once = blocks.bytes_read
    engine = Engine(blocks, FULL, live_bytes=1)
    engine.run([chunk, chunk, chunk], [FULL], lambda _state, _logits: None, together=True)
    assert engine.report.bytes_read == once + 3 * (weight_bytes(checkpoint) - once)


def test_objectives_count_every_sample_once(model: Any, batch: dict[str, Tensor]) -> None:
    objectives: list[Objective] = [NegativeLogLikelihood(), Divergence(), TeacherForced()]
    for objective in objectives:
        losses = measure(engine_of(model), [from_batch(model, batch)], CONFIGS, objective)
        assert losses.shape == (len(CONFIGS), 2)
        assert np.isfinite(losses).all()


def test_a_damaged_model_is_refused(model: Any, batch: dict[str, Tensor], olmoe: Path) -> None:
    broken = load_model(olmoe)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ScoringError, match="finite logits"):
        logits_of(engine_of(broken), [from_batch(broken, batch)], [FULL])


def test_configurations_must_fit_the_model(model: Any, batch: dict[str, Tensor]) -> None:
    for config in ((4, 4), (0,) * 6):
        with pytest.raises(ScoringError, match="one number per block"):
            logits_of(engine_of(model), [from_batch(model, batch)], [config])


def test_samples_that_are_missing_are_an_error(model: Any, batch: dict[str, Tensor]) -> None:
    with pytest.raises(SamplesError, match="1 of 3"):
        measure(engine_of(model), [from_batch(model, batch, 1)], [FULL], TeacherForced())
    with pytest.raises(SamplesError, match="at least one"):
        measure(engine_of(model), [], [FULL], TeacherForced())


def test_unlabelled_rows_are_refused(model: Any, batch: dict[str, Tensor]) -> None:
    empty = batch | {"labels": torch.full_like(batch["labels"], -100)}
    with pytest.raises(SamplesError, match="no label"):
        from_batch(model, empty)
    with pytest.raises(SamplesError, match="input_ids"):
        from_batch(model, {"pixel_values": torch.zeros(1)})
