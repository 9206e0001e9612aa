"""How many experts each block needs: a sensitivity profile, and the best allocation of a mean k to the blocks.

    profile = sensitivity(measure, full, ks=(1, 2, 4))       # one block at a time at a smaller k
    print(k_option(allocate(profile, mean_k=4)))             # 8,4,4,2,… for --k

The prediction is the sum of single increases: measure the result, next to `uniform`, before believing it. The layer
level of Alloc-MoE (arXiv:2604.08133) is the same idea, sensitivity profiling and dynamic programming.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from importance.configurations import Config, Measure, free_blocks, keep_blocks, measured
from transform.errors import KnobError

if TYPE_CHECKING:
    import numpy as np

ByK = Mapping[int, float]
_SLACK = 1e-9  # a mean such as 16/3 of 3 blocks is 16 experts, whichever way it was rounded


@dataclass(frozen=True)
class Profile:
    """Per block of `full`: k -> mean paired loss increase over the full k, which is 0 there; and its standard error.

    Blocks that `full` drops have no entries. Standard error: sqrt(variance / n), the variance over n - 1; inf for one
    sample.
    """

    full: Config
    increase: tuple[ByK, ...]
    stderr: tuple[ByK, ...]

    def __post_init__(self) -> None:
        for block, (k, values) in enumerate(zip(self.full, self.increase, strict=True)):
            if k and (values.get(k) != 0 or not all(map(math.isfinite, values.values()))):
                raise KnobError(
                    f"increases must be finite and 0 at the full k, block {block} (k={k}) has {dict(values)}. "
                    "Profile it again."
                )


def profile_configs(full: Config, ks: Iterable[int]) -> list[Config]:
    """One block at one smaller k, the others as in `full`: by block, then by k, the larger first.

    KnobError for a k below 1 or above every k of `full`. A block skips what isn't smaller than its own k.
    """
    free_blocks(full, ())
    asked = set(ks)
    wrong = sorted(k for k in asked if type(k) is not int or not 1 <= k <= max(full))
    if wrong:
        raise KnobError(
            f"k must be from 1 to {max(full)} (the model's own), got {', '.join(map(str, wrong))}. Correct the list."
        )
    return [
        (*full[:block], k, *full[block + 1 :])
        for block in keep_blocks(full)
        for k in sorted(asked, reverse=True)
        if k < full[block]
    ]


def sensitivity(measure: Measure, full: Config, ks: Iterable[int], groups: Sequence[Hashable] | None = None) -> Profile:
    """The profile, measured in one call: `full` and all of `profile_configs(full, ks)`. groups: see `paired_drop`."""
    configs = profile_configs(full, ks)
    baseline, *rows = measured(measure, [full, *configs])
    increase: list[dict[int, float]] = [{k: 0.0} if k else {} for k in full]
    stderr: list[dict[int, float]] = [{k: 0.0} if k else {} for k in full]
    for config, row in zip(configs, rows, strict=True):
        block = next(j for j, (k, whole) in enumerate(zip(config, full, strict=True)) if k != whole)
        paired = row - baseline
        increase[block][config[block]] = float(paired.mean())
        stderr[block][config[block]] = _stderr(paired, groups)
    return Profile(full, tuple(increase), tuple(stderr))


def _stderr(paired: "np.ndarray", groups: Sequence[Hashable] | None) -> float:
    from importance.statistics import paired_drop

    if len(paired) < 2:
        return math.inf
    together = groups if groups is not None and len(set(groups)) > 1 else None
    return float(paired_drop(0 * paired, -paired, together).stderr[0])


def allocate(profile: Profile, mean_k: float, *, minimum: int = 1, fixed: Mapping[int, int] | None = None) -> Config:
    """The allocation with the smallest predicted increase whose k sum to at most floor(mean_k × kept blocks).

    minimum: no block gets less, except one whose full k is less. fixed: block -> k, whatever the minimum says. Of
    equal predictions the one with more experts, then with more in the earlier blocks. A multiple-choice knapsack,
    solved exactly: dynamic programme over the sum of k, in whole numbers. KnobError for an impossible mean.
    """
    choices = _choices(profile, minimum, fixed or {})
    budget = _budget(choices, mean_k)
    # floats are fractions over a power of two: over the largest one all are whole numbers, and sums are exact
    unit = max((value.as_integer_ratio()[1] for values in choices.values() for value in values.values()), default=1)
    best: dict[int, tuple[int, Config]] = {0: (0, ())}  # sum of k from this block on: (increase, the k negated)
    for block in reversed(keep_blocks(profile.full)):
        grown: dict[int, tuple[int, Config]] = {}
        for k, value in choices[block].items():
            top, bottom = value.as_integer_ratio()
            for total, (increase, rest) in best.items():
                new = (increase + top * (unit // bottom), (-k, *rest))
                if total + k <= budget and (total + k not in grown or new < grown[total + k]):
                    grown[total + k] = new
        best = grown
    _, _, negated = min((increase, -total, ks) for total, (increase, ks) in best.items())
    found = iter(negated)
    return tuple(-next(found) if k else 0 for k in profile.full)


def uniform(profile: Profile, mean_k: float) -> Config:
    """The same k in every block, as large as the mean allows; blocks that don't have it get their next smaller one.

    What to compare an allocation with. KnobError for an impossible mean, as in `allocate`.
    """
    choices = _choices(profile, 1, {})
    budget = _budget(choices, mean_k)
    levels = sorted({k for values in choices.values() for k in values})
    rows = [
        {block: max((k for k in values if k <= level), default=min(values)) for block, values in choices.items()}
        for level in levels
    ]
    row = max((each for each in rows if sum(each.values()) <= budget), key=lambda each: sum(each.values()))
    return tuple(row.get(block, 0) for block in range(len(profile.full)))


def predicted(profile: Profile, config: Config) -> float:
    """The sum of the blocks' increases at the k of `config`; KnobError for a k that wasn't profiled."""
    for block, (k, values) in enumerate(zip(config, profile.increase, strict=True)):
        if k not in values and (k or values):
            raise KnobError(
                f"block {block} was profiled at k={', '.join(map(str, sorted(values))) or 0}, got {k}. "
                "Profile that k too."
            )
    return math.fsum(values[k] for k, values in zip(config, profile.increase, strict=True) if values)


def k_option(config: Config) -> str:
    """`8,4,4` for `--k`: one k per kept block."""
    return ",".join(str(k) for k in config if k)


def _choices(profile: Profile, minimum: int, fixed: Mapping[int, int]) -> dict[int, ByK]:
    """Kept block -> what it may have: k -> increase."""
    if type(minimum) is not int or not 1 <= minimum <= max(profile.full):
        raise KnobError(
            f"minimum must be from 1 to {max(profile.full)} (the model's own k), got {minimum!r}. Lower it."
        )
    blocks = keep_blocks(profile.full)
    unknown = [block for block in fixed if block not in blocks]
    if unknown:
        raise KnobError(f"fixed k are for kept blocks {list(blocks)}, got {unknown}. Correct the blocks.")
    found: dict[int, ByK] = {}
    for block in blocks:
        values, whole = profile.increase[block], profile.full[block]
        allowed = {k: value for k, value in values.items() if k >= min(minimum, whole)}
        if block in fixed:
            allowed = {k: value for k, value in values.items() if k == fixed[block]}
            if not allowed:
                raise KnobError(
                    f"block {block} was profiled at k={', '.join(map(str, sorted(values)))}, fixed is "
                    f"{fixed[block]!r}. Profile that k too or fix another."
                )
        found[block] = allowed
    return found


def _budget(choices: Mapping[int, ByK], mean_k: float) -> int:
    """floor(mean_k × blocks); KnobError with the smallest and the largest mean that the choices allow."""
    blocks = len(choices)
    least, most = (sum(pick(values) for values in choices.values()) for pick in (min, max))
    if not math.isfinite(mean_k) or not least - _SLACK <= mean_k * blocks <= most + _SLACK:
        # rounded inwards, so that both can be typed
        low, high = -(-least * 10_000 // blocks) / 1e4, most * 10_000 // blocks / 1e4
        raise KnobError(
            f"the mean k of {blocks} blocks must be from {low} to {high} (sums {least} to {most}), got {mean_k}. "
            "Choose one of these, profile a smaller k, or lower the minimum."
        )
    return math.floor(mean_k * blocks + _SLACK)
