"""Greedy answers to a batch of questions that share a prefix.

The prefix is prefilled once, its cache copied for each row. Questions are padded on the right, so that no token ever
attends to nothing; new tokens follow behind the padding, which the mask hides, at position ids that don't count it.
Legend: B questions, P prefix, Q longest question.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from transform.errors import KnobcastError
from transform.molmoe.compatibility import CACHE

MAX_ROWS = 32
CACHE_BYTES = 1 << 30  # of all rows of a batch


class EvaluationError(KnobcastError):
    """A model that can't be evaluated."""


def rows_that_fit(model: nn.Module, length: int) -> int:
    """How many rows of this length a batch takes; key-value heads are counted as wide as the model, the most."""
    config = model.config.get_text_config(decoder=True)
    row = 2 * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize * length
    return max(1, min(MAX_ROWS, CACHE_BYTES // row))


def prefill(model: nn.Module, embeddings: Tensor) -> DynamicCache:
    """The cache of a prefix [1, P, d]; P may be 0."""
    cache = DynamicCache()
    if embeddings.shape[1]:
        with _runnable():
            model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1, **{CACHE: cache})
    return cache


def answer_batch(
    model: nn.Module,
    prefix: DynamicCache,
    questions: Sequence[Sequence[int]],
    ends: frozenset[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """New ids of each question, without the end token; `prefix` stays as it is."""
    device, past = model.device, prefix.get_seq_length()
    lengths = torch.tensor([len(ids) for ids in questions], device=device)
    width = int(lengths.max())
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in questions], device=device)
    steps = torch.arange(width, device=device)
    mask = torch.cat((steps.new_ones(len(ids), past), (steps < lengths[:, None]).long()), 1)
    positions = (past + steps).expand(len(ids), -1)
    cache = _expanded(prefix, len(ids))
    last, where = (lengths - 1).unique(return_inverse=True)  # logits only where a question ends
    logits = _step(model, cache, ids, mask, positions, last)[torch.arange(len(ids), device=device), where]
    following = past + lengths

    made: list[list[int]] = [[] for _ in questions]
    rows = list(range(len(ids)))
    for count in range(1, max_new_tokens + 1):
        tokens = logits.argmax(-1).tolist()
        going = [i for i, token in enumerate(tokens) if token not in ends]
        for i in going:
            made[rows[i]].append(tokens[i])
        if not going or count == max_new_tokens:
            break
        if len(going) < len(rows):
            chosen = torch.tensor(going, device=device)
            cache.batch_select_indices(chosen)
            mask, following, rows = mask[chosen], following[chosen], [rows[i] for i in going]
        mask = torch.cat((mask, mask.new_ones(len(rows), 1)), 1)
        new = torch.tensor([[tokens[i]] for i in going], device=device)
        logits = _step(model, cache, new, mask, following[:, None], 1)[:, -1]
        following = following + 1
    return made


def _step(
    model: nn.Module, cache: DynamicCache, ids: Tensor, mask: Tensor, positions: Tensor, keep: int | Tensor
) -> Tensor:
    with _runnable():
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=keep,
            **{CACHE: cache},
        ).logits
    if not torch.isfinite(logits).all():
        raise EvaluationError(
            "a model must give finite logits to be evaluated, this one gives NaN or infinity. Its weights are damaged."
        )
    return logits


def _expanded(prefix: DynamicCache, rows: int) -> DynamicCache:
    cache = DynamicCache()
    for block, (keys, values, *_) in enumerate(prefix):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), block)
    return cache


@contextmanager
def _runnable() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # such as widths that torch's grouped matrix product can't take, or no memory
        raise EvaluationError(
            f"evaluation needs a model that PyTorch can run here: {str(error).splitlines()[0][:200]}."
        ) from error
