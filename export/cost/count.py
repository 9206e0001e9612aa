"""A plan and a workload -> tokens, the parts of every stage, and memory. From headers and config alone, for any device.

Stages: `vision` cuts the picture and computes its features, `prefill` reads the whole prompt and gives the first token,
`decode` gives one further token: the middle one of the answer, for the cache grows by each.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from export.cost.cut import Cut
from export.cost.decoder import decoder_parts, kv_bytes
from export.cost.memory import decoder_bytes, vision_bytes
from export.cost.part import Stage, flops
from export.cost.stored import Stored
from export.cost.vision import vision_parts
from export.cost.work import Cost, Work, Workload
from transform.errors import KnobError
from transform.molmoe.preprocessing import choose_tiling
from transform.molmoe.tiling import Tiling, image_tokens, patch_tokens
from transform.plan import Plan, Vision, active_parameters, parameters

STAGES = ("vision", "prefill", "decode")


@dataclass(frozen=True)
class Counted:
    """What a workload takes. `vision` and `cut` are empty without a picture; `steps`: tokens behind the first one;
    `memory`: bytes that a stage needs at its peak, weights included."""

    tiling: Tiling | None
    features: int
    positions: int
    steps: int
    cut: Stage
    vision: Stage
    prefill: Stage
    decode: Stage
    kv_bytes: int
    weights: int
    memory: Mapping[str, int]

    @property
    def work(self) -> Work:
        """As a sweep's table keeps it; cutting the picture is no work of the model."""
        return Work(
            self.features,
            self.positions,
            flops(self.vision),
            flops(self.prefill),
            flops(self.decode),
            self.kv_bytes,
        )

    def stage(self, name: str) -> Stage:
        """The parts of one of STAGES."""
        return {"vision": (*self.cut, *self.vision), "prefill": self.prefill, "decode": self.decode}[name]


def count(plan: Plan, workload: Workload) -> Counted:
    """Raises KnobError where the workload has a picture that the model can't see, or doesn't fit its positions."""
    stored = Stored(plan.target, plan.form)
    tiling = _tiling(plan, workload)
    features = 0 if tiling is None else patch_tokens(*tiling)
    opening = 0 if plan.vision is None else 1  # image models begin with a token of their own
    positions = opening + (0 if tiling is None else image_tokens(*tiling)) + workload.prompt
    steps = max(workload.new - 1, 0)
    most = plan.target.settings.max_positions
    if positions + workload.new > most:
        raise KnobError(
            f"a workload must fit the model's {most} positions: its prompt takes {positions} and its answer "
            f"{workload.new}. Shorten them, or give a smaller --tokens."
        )
    cut: Stage = ()
    vision: Stage = ()
    memory: dict[str, int] = {}
    if tiling is not None and plan.vision is not None and workload.image is not None:
        crops = 1 + math.prod(tiling)
        cut = (Cut(workload.image, tiling, plan.vision.resize).part,)
        vision = vision_parts(stored, crops, features)
        memory["vision"] = plan.bytes + vision_bytes(stored, crops, features)
    total = positions + max(workload.new // 2, 1)
    memory["prefill"] = plan.bytes + kv_bytes(stored, positions) + decoder_bytes(stored, positions, positions)
    last = positions + steps
    # a step writes the new cache beside the old one
    memory["decode"] = plan.bytes + 2 * kv_bytes(stored, last) + decoder_bytes(stored, 1, last)
    return Counted(
        tiling,
        features,
        positions,
        steps,
        cut,
        vision,
        decoder_parts(stored, positions, positions),
        decoder_parts(stored, 1, total),
        kv_bytes(stored, last),
        plan.bytes,
        memory,
    )


def cost_of(plan: Plan, workloads: Mapping[str, Workload]) -> Cost:
    """What a sweep's table keeps of a setting. `bytes`: of the weights; raises KnobError as `count` does."""
    return Cost(
        parameters(plan.target),
        active_parameters(plan.target),
        plan.bytes,
        {name: count(plan, workload).work for name, workload in workloads.items()},
    )


def _tiling(plan: Plan, workload: Workload) -> Tiling | None:
    """(rows, columns) that the real preprocessing gives a picture of this size."""
    if workload.image is None:
        return None
    vision: Vision | None = plan.vision
    if vision is None:
        raise KnobError(
            f"a workload's picture needs a model that sees, {plan.target.architecture.model_type!r} models see none. "
            "Leave the picture out, as in 32:8."
        )
    width, height = workload.image
    return choose_tiling(height, width, vision.tokens, vision.max_crops, vision.rule)
