"""Accuracy drop: accuracy of the full model minus accuracy without the block, on the same samples.

    score_i = mean_s [a(s, full) - a(s, without i)],   a: the task score of the answer, 0..1

Range -1..1; higher = more important; below 0 = better without the block. Every block gets its true score, the first
and the last too: keeping them is the selection's business. The reference for all other metrics.
"""

from collections.abc import Iterable, Mapping
from itertools import chain

from torch import nn

from importance.ablation import ablate, chunks_of
from importance.chunks import Batch
from importance.objectives import TeacherForced
from importance.samples import SamplesError
from transform.errors import KnobError

TOLERANCE = 0.5  # samples by which a given baseline may differ


def compute_accuracy_drop_importance(
    model: nn.Module,
    dataloader: Iterable[Batch],
    baseline_accuracy: float | None = None,
    num_samples: int = 5000,
) -> list[float]:
    """One drop per block, from batches with `labels` [B, S] (-100 where nothing is scored), at most `num_samples` rows.

    A row is right if the greedy choice at every labelled position is the label. `baseline_accuracy` (0..1) is checked
    against the full model's on the same rows: a drop from another baseline would shift every score. None: measured.
    """
    chunks = chunks_of(model, dataloader, limit=num_samples, labels="accuracy")
    result = ablate(model, chunks, TeacherForced())
    taken = result.losses.shape[1]
    found = 1.0 - float(result.losses[0].mean())
    if baseline_accuracy is not None and abs(baseline_accuracy - found) > TOLERANCE / taken:
        raise KnobError(
            f"the baseline must be the full model's accuracy on the {taken} rows that are scored, {found:.6f}; got "
            f"baseline_accuracy={baseline_accuracy}. Pass None to have it measured."
        )
    return result.drops.mean(1).tolist()


def compute_importance(model: nn.Module, batch: Batch | Iterable[Batch]) -> list[float]:
    """One score per block for a batch or several: accuracy drop where they have labels, else KL to the full model."""
    batches: Iterable[Batch] = [batch] if isinstance(batch, Mapping) else batch
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise SamplesError("at least one batch is needed, got 0.")
    everything = chain([first], iterator)
    if first.get("labels") is not None:
        return compute_accuracy_drop_importance(model, everything, num_samples=2**62)
    from importance.metrics.kl import compute_kl_importance

    return compute_kl_importance(model, everything)
