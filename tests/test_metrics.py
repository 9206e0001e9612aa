"""Each metric equals an independent, plain computation: hooks on transformers' own model, one row at a time."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from importance.ablation import observe
from importance.blocks import ResidentBlocks
from importance.chunks import TEXT, VISION, Chunk, from_batch
from importance.engine import full_config
from importance.metrics import METRICS, Metric, metric
from importance.metrics._stream import Stream
from importance.metrics.accuracy import compute_accuracy_drop_importance, compute_importance
from importance.metrics.activation import compute_activation_importance
from importance.metrics.angular import Angular, compute_angular_importance
from importance.metrics.attention import AttentionEntropy, compute_attention_importance
from importance.metrics.block_influence import BlockInfluence
from importance.metrics.gradient import compute_gradient_importance
from importance.metrics.kl import compute_kl_importance
from importance.metrics.nll import compute_nll_importance
from importance.metrics.router_mass import RouterMass
from importance.samples import SamplesError
from importance.scores import LESS
from transform.errors import KnobError
from transform.load import load_model
from transform.runtime import BlockMaskWrapper

LAYERS = 6


@pytest.fixture(scope="module")
def model(olmoe: Path) -> Any:
    """Blocks that matter differently: a random model's are all alike."""
    found = load_model(olmoe)
    with torch.no_grad():
        for layer, size in zip(found.model.layers, (6.0, 1.0, 3.0, 0.5, 2.0, 4.0), strict=True):
            layer.self_attn.o_proj.weight.mul_(size)
            layer.mlp.experts.down_proj.mul_(20 * size)
            layer.mlp.gate.weight.mul_(20)
    return found


@pytest.fixture(scope="module")
def batches() -> list[dict[str, Tensor]]:
    """Two batches, the first with padding; labels on the last tokens."""
    torch.manual_seed(5)
    found = []
    for rows, size, pad in ((2, 12, 4), (1, 7, 0)):
        ids = torch.randint(3, 128, (rows, size))
        mask = torch.ones_like(ids)
        if pad:
            mask[1, -pad:] = 0
        labels = torch.full_like(ids, -100)
        for row in range(rows):
            length = int(mask[row].sum())
            labels[row, length - 3 : length] = ids[row, length - 3 : length]
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


@pytest.fixture(scope="module")
def rows(batches: list[dict[str, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """(ids, labels) of each row without its padding."""
    return [
        (b["input_ids"][r, : int(b["attention_mask"][r].sum())], b["labels"][r, : int(b["attention_mask"][r].sum())])
        for b in batches
        for r in range(len(b["input_ids"]))
    ]


def logits_at_answers(model: Any, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0, :-1]
    scored = labels[1:] != -100
    return logits[scored].double(), labels[1:][scored]


def without_block(model: Any, block: int) -> BlockMaskWrapper:
    return BlockMaskWrapper(model, [i != block for i in range(LAYERS)])


def streams(model: Any, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(before, behind) every block, [S, d] float64."""
    found: list[tuple[Tensor, Tensor]] = []
    handles = [
        layer.register_forward_hook(lambda _m, given, out: found.append((given[0][0].double(), out[0].double())))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(input_ids=ids[None])
    for handle in handles:
        handle.remove()
    return found


def test_nll(model: Any, batches: Any, rows: Any) -> None:
    def loss(ids: Tensor, labels: Tensor) -> float:
        logits, targets = logits_at_answers(model, ids, labels)
        return F.cross_entropy(logits, targets).item()

    full = np.array([loss(*row) for row in rows])
    expected = []
    for block in range(LAYERS):
        with without_block(model, block):
            expected.append(float((np.array([loss(*row) for row in rows]) - full).mean()))
    assert compute_nll_importance(model, batches) == pytest.approx(expected, abs=2e-5)
    assert max(expected) > 0.05, "the model must care"


def test_kl(model: Any, batches: Any, rows: Any) -> None:
    full = [logits_at_answers(model, *row)[0].log_softmax(-1) for row in rows]
    expected = []
    for block in range(LAYERS):
        with without_block(model, block):
            each = [logits_at_answers(model, *row)[0].log_softmax(-1) for row in rows]
        kls = [F.kl_div(b, a, log_target=True, reduction="sum") / len(a) for a, b in zip(full, each, strict=True)]
        expected.append(float(torch.stack(kls).mean()))
    assert compute_kl_importance(model, batches) == pytest.approx(expected, abs=2e-5)
    assert min(expected) > 1e-4


def test_accuracy_drop_scores_the_first_and_last_block_too(model: Any, rows: Any) -> None:
    """Labels are what the full model says for two rows, and something else for the third."""
    ids = rows[0][0]
    spoken = []
    for extra in range(3):
        sequence = torch.cat((ids, torch.tensor([5 + extra])))
        for _ in range(2):
            with torch.no_grad():
                sequence = torch.cat((sequence, model(input_ids=sequence[None]).logits[0, -1:].argmax(-1)))
        spoken.append(sequence)
    batch = {"input_ids": torch.stack(spoken)}
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -2:] = batch["input_ids"][:, -2:]
    labels[2, -1] = (labels[2, -1] + 1) % 128
    batch["labels"] = labels

    def right() -> list[float]:
        found = []
        for sequence, wanted in zip(batch["input_ids"], labels, strict=True):
            with torch.no_grad():
                best = model(input_ids=sequence[None]).logits[0, -3:-1].argmax(-1)
            found.append(float(torch.equal(best, wanted[-2:])))
        return found

    full = np.array(right())
    assert full.tolist() == [1, 1, 0]
    lost = []
    for block in range(LAYERS):
        with without_block(model, block):
            lost.append(full - right())
    expected = np.mean(lost, axis=1)
    found = compute_accuracy_drop_importance(model, [batch], 2 / 3)
    assert found == pytest.approx(expected)
    assert found[0] > 0, "block 0 has its true score: protection is the selection's business"
    assert compute_importance(model, batch) == pytest.approx(expected)
    with pytest.raises(KnobError, match="baseline"):
        compute_accuracy_drop_importance(model, [batch], 1.0)
    first = np.mean(lost, axis=1, where=[True, True, False])
    assert compute_accuracy_drop_importance(model, [batch], num_samples=2) == pytest.approx(first)
    assert first != pytest.approx(expected)


def test_importance_of_a_batch_without_labels_is_kl(model: Any, batches: Any) -> None:
    plain = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    assert compute_importance(model, plain) == compute_kl_importance(model, plain)


def test_activation(model: Any, batches: Any, rows: Any) -> None:
    per_row = [[((y - x).norm(dim=-1) / x.norm(dim=-1)).mean() for x, y in streams(model, ids)] for ids, _ in rows]
    expected = np.array(per_row).mean(0)
    assert compute_activation_importance(model, batches) == pytest.approx(expected, rel=1e-5)
    first = compute_activation_importance(model, batches, num_samples=1)
    assert first == pytest.approx(np.array(per_row[0]), rel=1e-5)


def observed(model: Any, batches: Any, watcher: Any) -> np.ndarray:
    chunks: list[Chunk] = []
    for batch in batches:
        chunks.append(from_batch(model, batch, 2 * len(chunks)))
    observe(ResidentBlocks(model), full_config(model), chunks, [watcher])
    return np.array([watcher.values[block] for block in sorted(watcher.values)])


def test_block_influence(model: Any, batches: Any, rows: Any) -> None:
    expected = [[(1 - F.cosine_similarity(x, y, dim=-1)).mean() for x, y in streams(model, ids)] for ids, _ in rows]
    np.testing.assert_allclose(observed(model, batches, BlockInfluence()), np.array(expected).T, rtol=2e-5)


@pytest.mark.parametrize("window", [1, 3])
def test_angular(model: Any, batches: Any, rows: Any, window: int) -> None:
    expected = []
    for ids, labels in rows:
        last = int((labels != -100).nonzero()[0]) - 1  # the token that answers
        found = streams(model, ids)
        stream = [found[0][0][last], *(y[last] for _, y in found)]
        cosines = [float(F.cosine_similarity(stream[i], stream[i + window], dim=0)) for i in range(LAYERS + 1 - window)]
        expected.append([math.acos(value) / math.pi for value in cosines])
    np.testing.assert_allclose(observed(model, batches, Angular(window)), np.array(expected).T, rtol=1e-5)
    assert compute_angular_importance(model, batches, window) == pytest.approx(np.mean(expected, 0), rel=1e-5)


def test_attention_entropy(olmoe: Path, model: Any, batches: Any, rows: Any) -> None:
    eager = load_model(olmoe, attn_implementation="eager")
    eager.load_state_dict(model.state_dict())
    expected = []
    for ids, _ in rows:
        with torch.no_grad():
            weights = eager(input_ids=ids[None], output_attentions=True).attentions
        row = []
        for layer in weights:
            a = layer[0].double()  # [heads, S, S]
            entropy = -(a * a.clamp(min=1e-300).log()).sum(-1).mean(0)
            row.append(float((entropy[1:] / torch.arange(2, len(ids) + 1).log()).mean()))
        expected.append(row)
    np.testing.assert_allclose(observed(model, batches, AttentionEntropy()), np.array(expected).T, rtol=1e-5)
    assert model.config._attn_implementation == "sdpa", "left as it was"
    assert compute_attention_importance(model, batches) == pytest.approx(np.array(expected).mean(0), rel=1e-5)


@pytest.mark.parametrize("k", [None, 2])
def test_router_mass(model: Any, batches: Any, rows: Any, k: int | None) -> None:
    expected = []
    for ids, _ in rows:
        with torch.no_grad():
            logits = model(input_ids=ids[None], output_router_logits=True).router_logits
        expected.append([float(layer.double().softmax(-1).topk(k or 4).values.sum(-1).mean()) for layer in logits])
    np.testing.assert_allclose(observed(model, batches, RouterMass(k=k)), np.array(expected).T, rtol=1e-5)
    assert metric("router_mass").higher_means == LESS


def test_gradient_is_the_first_order_term(model: Any, batches: Any, rows: Any) -> None:
    """The derivative of the loss along y + t (x - y) at t = 0, by central differences."""
    double = load_model_in_double(model)
    step = 2e-3  # norms and router compute in float32 even here: smaller steps drown in rounding
    expected = []
    for block in range(LAYERS):
        values = []
        for ids, labels in rows:
            sides = []
            for t in (step, -step):
                handle = double.model.layers[block].register_forward_hook(
                    lambda _m, given, out, t=t: out + t * (given[0] - out)
                )
                with torch.no_grad():
                    logits = double(input_ids=ids[None]).logits[0, :-1]
                handle.remove()
                scored = labels[1:] != -100
                sides.append(F.cross_entropy(logits[scored], labels[1:][scored]).item())
            values.append((sides[0] - sides[1]) / (2 * step))
        expected.append(np.mean(values))
    np.testing.assert_allclose(compute_gradient_importance(double, batches), expected, rtol=2e-3, atol=2e-5)
    # in float32 some token may choose another expert
    np.testing.assert_allclose(compute_gradient_importance(model, batches), expected, rtol=0.1, atol=1e-4)


def load_model_in_double(model: Any) -> Any:
    double = copy.deepcopy(model).double()
    double.set_experts_implementation("eager")  # the grouped matrix product has no float64
    return double


def test_gradients_take_a_loss(model: Any, batches: Any) -> None:
    plain = np.array(compute_gradient_importance(model, batches))
    doubled = compute_gradient_importance(model, batches, lambda logits, ids: 2 * F.cross_entropy(logits, ids))
    np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-5)


def test_vision_and_text_weigh_what_they_are_given(model: Any, batches: Any) -> None:
    chunk = from_batch(model, batches[1])
    chunk.modality[:, 1:5] = VISION
    assert (chunk.modality == TEXT).any()
    engine_blocks, full = ResidentBlocks(model), full_config(model)
    found = {}
    for weight in (0.0, 0.25, 1.0, None):
        watcher = BlockInfluence(weight)
        observe(engine_blocks, full, [chunk], [watcher])
        found[weight] = np.array([watcher.values[block][0] for block in range(LAYERS)])
    np.testing.assert_allclose(found[0.25], 0.25 * found[1.0] + 0.75 * found[0.0])
    np.testing.assert_allclose(found[None], (4 * found[1.0] + 3 * found[0.0]) / 7)


def test_labels_are_asked_for(model: Any, batches: Any) -> None:
    plain = [{"input_ids": batches[0]["input_ids"]}]
    asking: tuple[Any, ...] = (
        compute_accuracy_drop_importance, compute_nll_importance, compute_gradient_importance,
    )  # fmt: skip
    for function in asking:
        with pytest.raises(SamplesError, match="needs labels"):
            function(model, plain)
    for function in (compute_importance, compute_kl_importance, compute_activation_importance, *asking):
        with pytest.raises(SamplesError, match="at least one"):
            function(model, [])


@pytest.mark.parametrize("found", METRICS, ids=lambda m: m.name)
def test_every_metric_is_complete(found: Any) -> None:
    assert found.module.__doc__
    assert found.reference and found.unit and found.title
    assert found.kind == "ablation" or hasattr(found.module, "watcher" if found.kind == "observation" else "taylor")
    assert found.reference in (found.module.__doc__ or "") or not found.reference.startswith("arXiv")


@pytest.mark.parametrize("found", METRICS, ids=lambda found: found.name)
def test_vision_weighted_metrics_are_those_that_take_a_weight(found: Metric) -> None:
    watcher = getattr(found.module, "watcher", None)
    assert found.vision_weighted == (watcher is not None and issubclass(watcher, Stream))


def test_an_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(KnobError, match="block_influence"):
        metric("bi")
