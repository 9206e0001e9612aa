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
from transform.molmoe.tiling import image_tokens, patch_tokens
from transform.plan import Plan
from transform.sizes import active_parameters, parameters

STAGES = ("vision", "prefill", "decode")


@dataclass(frozen=True)
class Tokens:
    """A workload as one setting reads it. `crops`: with the global view, 0 without a picture; `features`: those that
    the sequence keeps; `positions`: of the whole prompt; `new`: tokens of the answer; `cut`: None where a picture comes
    cut already, or there is none."""

    crops: int
    features: int
    positions: int
    new: int
    cut: Cut | None = None


@dataclass(frozen=True)
class Counted:
    """What a workload takes. `cut` and `vision` are empty without a picture; `memory`: bytes that a stage needs at its
    peak, weights included, by the names of stages."""

    tokens: Tokens
    cut: Stage
    vision: Stage
    prefill: Stage
    decode: Stage
    kv_bytes: int
    memory: Mapping[str, int]

    @property
    def steps(self) -> int:
        """Tokens behind the first one."""
        return max(self.tokens.new - 1, 0)

    @property
    def work(self) -> Work:
        """As a sweep's table keeps it; cutting the picture is no work of the model."""
        return Work(
            self.tokens.features,
            self.tokens.positions,
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
    return count_tokens(plan, tokens_of(plan, workload))


def cost_of(plan: Plan, workloads: Mapping[str, Workload]) -> Cost:
    """What a sweep's table keeps of a setting. `bytes`: of the weights; raises KnobError as `count` does."""
    return Cost(
        parameters(plan.target),
        active_parameters(plan.target),
        plan.bytes,
        {name: count(plan, workload).work for name, workload in workloads.items()},
    )


def tokens_of(plan: Plan, workload: Workload) -> Tokens:
    """Crops and tokens as the real preprocessing gives them; image models begin with a token of their own."""
    vision = plan.vision
    if workload.image is None:
        return Tokens(0, 0, int(vision is not None) + workload.prompt, workload.new)
    if vision is None:
        raise KnobError(
            f"a workload's picture needs a model that sees, {plan.target.architecture.model_type!r} models see none. "
            "Leave the picture out, as in 32:8."
        )
    width, height = workload.image
    tiling = choose_tiling(height, width, vision.tokens, vision.max_crops, vision.rule)
    positions = 1 + image_tokens(*tiling) + workload.prompt
    cut = Cut(workload.image, tiling, vision.resize)
    return Tokens(1 + math.prod(tiling), patch_tokens(*tiling), positions, workload.new, cut)


def count_tokens(plan: Plan, tokens: Tokens) -> Counted:
    """Raises KnobError where they don't fit the model's positions."""
    plan.insist_on_graphs("an estimate")
    stored = Stored(plan)
    most = plan.target.settings.max_positions
    if tokens.positions + tokens.new > most:
        raise KnobError(
            f"a workload must fit the model's {most} positions: its prompt takes {tokens.positions} and its answer "
            f"{tokens.new}. Shorten them, or give a smaller --tokens."
        )
    memory, weights = {}, plan.bytes
    if tokens.crops:
        memory["vision"] = weights + vision_bytes(stored, tokens.crops, tokens.features)
    prompt, last = tokens.positions, tokens.positions + max(tokens.new - 1, 0)
    memory["prefill"] = weights + kv_bytes(stored, prompt) + decoder_bytes(stored, prompt, prompt)
    # a step writes the new cache beside the old one
    memory["decode"] = weights + 2 * kv_bytes(stored, last) + decoder_bytes(stored, 1, last)
    return Counted(
        tokens,
        () if tokens.cut is None else (tokens.cut.part,),
        vision_parts(stored, tokens.crops, tokens.features) if tokens.crops else (),
        decoder_parts(stored, prompt, prompt),
        decoder_parts(stored, 1, prompt + max(tokens.new // 2, 1)),
        kv_bytes(stored, last),
        memory,
    )
