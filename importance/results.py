"""What measurements say: errors of means, the sets a search found, the allocation of experts, as files hold them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from importance.allocation import allocate, k_option, predicted, sensitivity, uniform
from importance.search.found import Found
from importance.statistics import Spread

if TYPE_CHECKING:
    from importance.score import Scorer


class Loss(TypedDict):
    """What a set loses beside the full model; `interval` is empty where there are too few samples for one."""

    increase: float
    stderr: float | None
    interval: list[float]


class SetNotes(TypedDict):
    """What a sets file says of its search; `losses` by the number of blocks left."""

    strategy: str
    objective: str
    samples: int
    data_digest: str
    baseline_loss: float
    losses: dict[str, Loss]
    interval: str
    nested: bool
    configurations: int
    block_evaluations: int
    naive_block_evaluations: int


class Allocation(TypedDict):
    """Experts per block: what they were predicted to lose beside the full model, and what they lose."""

    name: str
    k: list[int]
    predicted: float
    increase: float
    stderr: float | None


class Allocations(TypedDict):
    """The file of `allocated`; profiles: for each block by its k."""

    schema: int
    k: str
    mean_k: float
    exportable: bool
    model_digest: str
    data_digest: str
    samples: int
    objective: str
    allocation: list[Allocation]
    profile: list[dict[str, float]]
    profile_stderr: list[dict[str, float | None]]


def found_sets(found: Found, scorer: "Scorer") -> tuple[dict[int, tuple[int, ...]], SetNotes]:
    """What a search found, for `write_sets`: blocks left -> blocks to drop, and notes with paired losses."""
    layers, base = len(found.full), found.baseline
    gone = tuple(block for block, k in enumerate(found.full) if k == 0)
    drop = {layers - len(gone) - size: tuple(sorted((*gone, *best.dropped))) for size, best in enumerate(found.best, 1)}
    rows = np.array([best.losses - base.losses for best in found.best])
    spread = Spread.of(rows, scorer.groups)
    losses: dict[str, Loss] = {
        str(layers - len(gone) - size): {
            "increase": float(rows[size - 1].mean()),
            "stderr": spread.stderr.get(size - 1),
            "interval": list(spread.interval.get(size - 1, ())),
        }
        for size in range(1, len(found.best) + 1)
    }
    notes: SetNotes = {
        "strategy": found.strategy,
        "objective": scorer.setting.chosen.name,
        "samples": len(scorer.setting.samples),
        "data_digest": scorer.data_digest,
        "baseline_loss": base.loss,
        "losses": losses,
        "interval": spread.note,
        "nested": found.nested,
        "configurations": found.cost.sets,
        "block_evaluations": found.cost.block_evaluations,
        "naive_block_evaluations": found.cost.naive_block_evaluations,
    }
    return drop, notes


def allocated(scorer: "Scorer", mean_k: float, ks: Sequence[int]) -> Allocations:
    """The best k per block with a mean of at most `mean_k`, measured beside the same k everywhere."""
    groups = scorer.setting.groups.tolist()
    profile = sensitivity(scorer.measure, scorer.setting.full, ks, groups)
    best, same = allocate(profile, mean_k), uniform(profile, mean_k)
    full, ours, theirs = scorer.measure([scorer.setting.full, best, same])
    spread = Spread.of(np.array([ours - full, theirs - full]), scorer.setting.groups)
    return {
        "schema": 1,
        "k": k_option(best),
        "mean_k": mean_k,
        "exportable": scorer.setting.checkpoint.architecture.per_block_top_k,
        "model_digest": scorer.model_digest,
        "data_digest": scorer.data_digest,
        "samples": len(scorer.setting.samples),
        "objective": scorer.setting.chosen.name,
        "allocation": [
            {
                "name": name,
                "k": list(config),
                "predicted": predicted(profile, config),
                "increase": float((losses - full).mean()),
                "stderr": spread.stderr.get(row),
            }
            for row, (name, config, losses) in enumerate((("allocated", best, ours), ("uniform", same, theirs)))
        ],
        "profile": [{str(at): value for at, value in sorted(block.items())} for block in profile.increase],
        "profile_stderr": [
            {str(at): value if np.isfinite(value) else None for at, value in sorted(block.items())}
            for block in profile.stderr
        ],
    }
