"""A grid over one model -> its settings, each a whole plan, enumerated and without doubles. From headers alone."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from export.family.grid import k_and_blocks
from export.sweep.grid import Grid
from importance.choose import Source, choose_blocks
from importance.configurations import Config
from transform.checkpoint import Checkpoint
from transform.errors import KnobError
from transform.knobs import Knobs, canonical_name, parse_tokens, spelt_k
from transform.plan import Plan, make_plan
from transform.vision_plan import DEFAULT_POLICY, own_policy

MOST_SETTINGS = 500  # the table of a sweep is one JSON file


@dataclass(frozen=True)
class Planned:
    """A setting before anything is measured."""

    plan: Plan

    @property
    def name(self) -> str:
        """`k4-b12-t432-int4`."""
        return "-".join((canonical_name(self.top_k, self.plan.knobs.tokens), *self.plan.extras))

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two settings that make the same variant, however they were said."""
        target = self.plan.target
        return self.plan.form.name, target.layout_digest, self.plan.keep_blocks, self.top_k, self.plan.vision

    @property
    def tokens(self) -> int | str | None:
        """The vision budget."""
        return self.plan.knobs.tokens

    @property
    def weights(self) -> tuple[str, str]:
        """(form, dtype), which all settings over the same weights share."""
        return self.plan.form.name, self.plan.dtype

    @property
    def as_source(self) -> bool:
        """Whether its weights hold the source's own numbers."""
        return self.plan.new_packing is None and self.plan.dtype == "source"

    @property
    def config(self) -> Config:
        """Experts per token of every block of the source, 0 where it goes."""
        k = dict(zip(self.plan.keep_blocks, self.top_k, strict=True))
        return tuple(k.get(block, 0) for block in range(self.plan.source.settings.layers))

    def command(self, model: str | None) -> str:
        """What makes the variant. `model`: as the user named it, None for the embedded one."""
        knobs, usual = self.plan.knobs, self.plan.source_form
        words = ["knobcast", "export", *([] if model is None else [model])]
        words += [] if knobs.k is None else ["--k", spelt_k(self.top_k)]
        words += ["--keep-blocks", ",".join(map(str, self.plan.keep_blocks))] if self.plan.removed else []
        words += [] if knobs.tokens is None else ["--tokens", str(knobs.tokens)]
        words += [] if self.plan.form == usual else ["--form", self.plan.form.name]
        words += [] if knobs.dtype == "source" else ["--dtype", knobs.dtype]
        policy = zip(("--resize", "--rule"), (knobs.resize, knobs.rule), DEFAULT_POLICY, strict=True)
        for option, value, default in policy:
            words += [] if value in (None, default) else [option, str(value)]
        return shlex.join(words)

    @property
    def top_k(self) -> tuple[int, ...]:
        """Experts per token, one per kept block."""
        return self.plan.target.settings.top_k


def full_setting(source: Checkpoint) -> Planned:
    """All knobs as the source has them: what relative constraints refer to."""
    whole = make_plan(source, Knobs())
    whole.insist_on_graphs("a sweep")
    return Planned(whole)


def settings_of(grid: Grid, source: Checkpoint, ranking: Source | None) -> tuple[Planned, ...]:
    """Every setting of the grid once, k outermost, then blocks, tokens, form and dtype; raises KnobError.

    ranking: what chooses blocks, where the grid has a number of them that leaves some out.
    """
    axes = grid.axes
    pairs = k_and_blocks(axes, source.settings.layers)
    sees = source.architecture.modality.sees_images
    if "tokens" in axes and not sees:
        if source.architecture.pixels is not None:
            raise KnobError(
                f"tokens= is an axis where graphs see pictures, and {source.architecture.model_type!r} models have "
                f"none, got {','.join(axes['tokens'])[:40]}. Leave tokens= out; a budget is set by export --tokens."
            )
        raise KnobError(
            f"tokens= is about images, and {source.architecture.model_type!r} models see none, got "
            f"{','.join(axes['tokens'])[:40]}. Leave tokens= out."
        )
    tokens = [parse_tokens(value) for value in axes.get("tokens", ())] or [None]
    forms: Sequence[str | None] = axes.get("form") or [None]
    dtypes = axes.get("dtype") or ["source"]
    count = len(pairs) * len(tokens) * len(forms) * len(dtypes)
    if count > MOST_SETTINGS:
        raise KnobError(f"a sweep has at most {MOST_SETTINGS} settings, the grid gives {count}. Leave out values.")
    resize, rule = own_policy(source)[1:] if sees else (None, None)
    keep = {blocks: choose_blocks(source, blocks=blocks, scores=ranking) for blocks in {p.blocks for p in pairs}}
    found: dict[tuple[object, ...], Planned] = {}
    for pair, budget, form, dtype in product(pairs, tokens, forms, dtypes):
        knobs = Knobs(pair.k, keep[pair.blocks], budget, dtype, form, resize, rule)
        made = Planned(make_plan(source, knobs))
        found.setdefault(made.identity, made)
    return tuple(found.values())


def with_full(settings: Sequence[Planned], full: Planned) -> tuple[Planned, ...]:
    """The full setting, then all others."""
    return full, *(setting for setting in settings if setting.identity != full.identity)


def drops_blocks(grid: Grid, layers: int) -> bool:
    """Whether some setting leaves blocks out, so that something must choose them."""
    return any(pair.blocks < layers for pair in k_and_blocks(grid.axes, layers))
