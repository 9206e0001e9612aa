"""What a setting will do, before anything is done: a printable value computed from headers and config alone.

Checkpoint and knobs in; the planned checkpoint, the vision policy, parameter counts, bytes and warnings out.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from transform.agreement import OF_EXPERTS, check_experts, untied_head
from transform.checkpoint import Checkpoint
from transform.depth import drop_blocks
from transform.dtype import cast
from transform.errors import KnobError
from transform.forms import FORMS, REFERENCE, ROUNDED, Form, form_named
from transform.graphs import quantised_by, why_no_graphs
from transform.hub_cache import hub_id, name_of, revision_of
from transform.image_settings import max_crops, variant_policy
from transform.knobs import DTYPES, Knobs, canonical_name, parse_tokens
from transform.molmoe import tiling
from transform.packed_layout import Packing, activations_of, packed_bytes, packing_for, packing_of
from transform.picture_processor import PicturePlan, picture_warnings, plan_pictures
from transform.plan_facts import PlanFacts, VisionFacts
from transform.stack import is_stacked, stack_experts
from transform.tokenizer_file import FILE as TOKENIZER
from transform.tokenizer_file import tokenizer_warnings
from transform.top_k import beyond_training, set_top_k
from transform.write import written_bytes

RESIZES = ("pad", "fill")  # those of `molmoe/preprocessing.py`, which needs numpy
DEFAULT_POLICY = ("pad", "canvas")
ADAPTER = "adapter_config.json"  # peft's


@dataclass(frozen=True)
class Vision:
    """How an image becomes tokens in the variant. `tokens`: the nominal budget, a tier, or None (stock tiling);
    `crops`: tiles without the global view, or None where an image may take fewer than `max_crops`."""

    tokens: int | str | None
    crops: int | None
    max_crops: int
    resize: str
    rule: str
    tilings: tuple[tuple[int, int], ...]

    def as_dict(self) -> VisionFacts:
        """For plan, manifest and io.json; token counts are real ones, per (rows, columns)."""
        return {
            "tokens": self.tokens,
            "crops": self.crops,
            "max_crops": self.max_crops,
            "resize": self.resize,
            "rule": self.rule,
            "tilings": [
                {
                    "rows": r,
                    "columns": c,
                    "nominal_tokens": (r * c + 1) * tiling.TOKENS_PER_CROP,
                    "patch_tokens": tiling.patch_tokens(r, c),
                    "image_tokens": tiling.image_tokens(r, c),
                }
                for r, c in self.tilings
            ],
        }


@dataclass(frozen=True)
class Plan:
    """Source, planned target, and everything a user wants to see before the work starts."""

    source: Checkpoint
    target: Checkpoint
    knobs: Knobs
    keep_blocks: tuple[int, ...]
    vision: Vision | None
    form: Form
    source_form: Form  # what the source's weights are for
    warnings: tuple[str, ...]
    pictures: PicturePlan | None = None  # a stock model's, where a budget was said

    @property
    def name(self) -> str:
        """`molmoe-nano-k4-b12-t432`."""
        name = f"{name_of(self.source.path)}-{canonical_name(self.target.settings.top_k, self.knobs.tokens)}"
        return "-".join((name, *self.extras))

    @property
    def extras(self) -> tuple[str, ...]:
        """What a name says behind k, blocks and tokens: all that isn't as usual."""
        policy = (self.vision.resize, self.vision.rule) if self.vision else ()
        words = (self.form.name, self.knobs.dtype, *policy)
        usual = (self.source_form.name, "source", *DEFAULT_POLICY)
        rounded = ("a8",) if self.activations == ROUNDED else ()
        return (*(word for word in words if word not in usual), *rounded)

    @property
    def no_graphs(self) -> str | None:
        """Why the variant gets no graphs; None where it does."""
        return why_no_graphs(self.target)

    def insist_on_graphs(self, what: str) -> None:
        """Raise KnobError for what is made of graphs where there are none."""
        if self.no_graphs:
            raise KnobError(f"{what} needs graphs: {self.no_graphs}. Export the checkpoint alone.")

    @property
    def left_out(self) -> tuple[str, ...]:
        """Tensors of the source that lie beyond its blocks and aren't written, in a line; or nothing."""
        beyond = [name for name in self.source.tensors if self.source.is_beyond(name)]
        lost = [name for name in beyond if name not in self.target.tensors]
        if not lost:
            return ()
        return (f"{len(lost)} tensors that predict further tokens ({lost[0]}, …): they belong to all blocks",)

    @property
    def activations(self) -> str | None:
        """What quantised matrices are multiplied with: what is said, else as the source has it, else the usual; None
        where no matrix is quantised."""
        if not self.form.activations:
            return None
        if self.knobs.activations is not None:
            return self.knobs.activations
        return self.form.activations[0] if self.new_packing else activations_of(self.source.config)

    @property
    def dtype(self) -> str:
        """The dtype that weights are rounded to; `source`: they are not."""
        return self.form.dtype(self.knobs.dtype)

    @property
    def packing(self) -> Packing | None:
        """How the weights are quantised, for good where the source's are already; None: they stay floats."""
        return packing_of(self.source.config) or packing_for(self.form, self.source)

    @property
    def new_packing(self) -> Packing | None:
        """The same where this plan quantises; None where the source's weights are codes already."""
        return None if packing_of(self.source.config) else self.packing

    @property
    def bytes(self) -> int:
        """Of the weights as they will be written."""
        return weight_bytes(self.target) if self.packing is None else packed_bytes(self.target, self.packing)

    @property
    def removed(self) -> tuple[int, ...]:
        """Block indices of the source that the variant lacks."""
        return tuple(i for i in range(self.source.settings.layers) if i not in self.keep_blocks)

    def as_dict(self) -> PlanFacts:
        """One JSON object; the words are those of flags and manifest."""
        target = self.target
        facts: PlanFacts = {
            "name": self.name,
            "model_type": target.architecture.model_type,
            "source": {
                "name": hub_id(self.source.path) or self.source.path.name,
                "revision": revision_of(self.source.path),
                "layout_digest": self.source.layout_digest,
                "blocks": self.source.settings.layers,
                "top_k": list(self.source.settings.top_k),
                "parameters": parameters(self.source),
                "active_parameters": active_parameters(self.source),
                "bytes": weight_bytes(self.source),
            },
            "knobs": {
                "k": self.knobs.k if not isinstance(self.knobs.k, tuple) else list(self.knobs.k),
                "blocks": target.settings.layers,
                "tokens": self.knobs.tokens,
                "dtype": self.knobs.dtype,
                "form": self.form.name,
                "activations": self.activations,
            },
            "blocks_kept": list(self.keep_blocks),
            "blocks_removed": list(self.removed),
            "top_k": list(target.settings.top_k),
            "vision": self.vision.as_dict() if self.vision else None,
            "parameters": parameters(target),
            "active_parameters": active_parameters(target),
            "bytes": self.bytes,
            "layout_digest": target.layout_digest,
            "warnings": list(self.warnings),
        }
        if reason := self.no_graphs:
            facts["graphs"] = reason
        if self.pictures:
            facts["pixels"] = self.pictures.as_dict()
        if self.left_out:
            facts["left_out"] = list(self.left_out)
        return facts


def parameters(checkpoint: Checkpoint) -> int:
    """Every stored number."""
    return sum(math.prod(t.shape) for t in checkpoint.tensors.values())


def active_parameters(checkpoint: Checkpoint) -> int:
    """Parameters that one token's way can touch: all but the experts that a block does not select."""
    if not checkpoint.architecture.complete:
        return parameters(checkpoint) - sum(_idle(checkpoint))
    idle = 0
    for i, k in enumerate(checkpoint.settings.top_k):
        expert = sum(math.prod(checkpoint.tensor(f"expert.{part}", i).shape) for part in ("gate", "up", "down"))
        idle += (checkpoint.settings.experts - k) * expert
    return parameters(checkpoint) - idle


def _idle(checkpoint: Checkpoint) -> Iterator[int]:
    """Of each block, the parameters of the experts that a token doesn't choose, however their tensors are laid out."""
    settings = checkpoint.settings
    stored = [0] * settings.layers
    for name, tensor in checkpoint.tensors.items():
        block, part = checkpoint.block_of(name)
        if block is not None and block < settings.layers and OF_EXPERTS.search(part):
            stored[block] += math.prod(tensor.shape)
    for total, experts, k in zip(stored, settings.experts_of, settings.top_k, strict=True):
        yield total * (experts - k) // experts if experts else 0


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of all tensors as they will be stored."""
    return sum(written_bytes(t) for t in checkpoint.tensors.values())


def make_plan(source: Checkpoint, knobs: Knobs) -> Plan:
    """Apply the passes (blocks, k, dtype, then the form's) to the headers; raises KnobError or BudgetError.

    None is not said. What isn't said about images stays as the source has it: a variant's budget is its variants' too.
    Where a budget is said, resize and rule that aren't are the usual ones.
    """
    check_experts(source)
    own = own_policy(source) if knobs.tokens is None else (knobs.tokens, *DEFAULT_POLICY)
    tokens = own[0]
    resize = own[1] if knobs.resize is None else knobs.resize
    rule = own[2] if knobs.rule is None else knobs.rule
    for option, word, words in (("resize", resize, RESIZES), ("rule", rule, tiling.RULES)):
        if word not in words:
            raise KnobError(f"{option} must be one of {', '.join(words)}, got {word!r}.")
    keep_blocks = knobs.keep if knobs.keep is not None else tuple(range(source.settings.layers))
    warnings = []
    target = drop_blocks(source, keep_blocks)
    if knobs.k is not None:
        target = set_top_k(target, knobs.k)
        warnings += [beyond_training(source, target.settings.top_k, keep_blocks)]
    if knobs.dtype != "source" and (method := quantised_by(source)):
        raise KnobError(
            f"weights quantised by {method} move as they are and can't be cast, got dtype {knobs.dtype!r}. "
            "Leave it out."
        )
    source_form = form_of(source)
    form = source_form if knobs.form is None else form_named(knobs.form)
    _check_form(source, source_form, form, knobs.dtype)
    if form is not source_form and (reason := why_no_graphs(source)):
        raise KnobError(f"a form is what graphs read: {reason}. Leave --form out.")
    if knobs.activations is not None and not form.activations:
        raise KnobError(
            f"activations are about quantised matrices, and the {form.name} form has none, got {knobs.activations}. "
            "Leave them out, or give --form int4."
        )
    target = cast(target, form.dtype(knobs.dtype))
    if form.stacked:
        target = stack_experts(target)
    vision, pictures = None, None
    if source.architecture.modality.sees_images:
        vision = plan_vision(source, tokens, resize, rule)
        if isinstance(tokens, int) and vision.crops is not None:
            warnings += [tiling.budget_warning(vision.crops)]
        warnings += [_too_long(source, vision)]
    else:
        pictures = _stock_pictures(source, knobs)
        warnings += picture_warnings(source, pictures) if pictures else []
    if TOKENIZER in source.side_files or why_no_graphs(source) is None:  # else nothing of ours runs the variant
        warnings += tokenizer_warnings(source)
    warnings += [untied_head(source)]
    if (source.path / ADAPTER).exists():
        warnings.append(
            f"{ADAPTER} lies beside the weights: the variant is made of the weights alone. If the adapter isn't merged "
            "into them, merge it first (peft's merge_and_unload)"
        )
    return Plan(
        source, target, knobs, tuple(keep_blocks), vision, form, source_form, tuple(w for w in warnings if w), pictures
    )


def _stock_pictures(source: Checkpoint, knobs: Knobs) -> PicturePlan | None:
    """The budget of a model whose pictures are its own processor's; raises KnobError for what such a model can't be
    told."""
    said = {"tokens": knobs.tokens, "resize": knobs.resize, "rule": knobs.rule}
    family, given = source.architecture, [name for name, value in said.items() if value is not None]
    if given and family.pixels is None:
        seeing = isinstance(source.config.get("vision_config"), Mapping)
        lacking = "nothing is known here of how their processor counts tokens" if seeing else "see no images"
        raise KnobError(
            f"tokens, resize and rule are about images, and {family.model_type!r} models "
            f"{'have a processor of their own: ' if seeing else ''}{lacking}, got {', '.join(given)}. Leave them out."
        )
    if tilings := [name for name in given if name != "tokens"]:
        raise KnobError(
            f"resize and rule are about tilings, and the processor of {family.model_type!r} models has none, it keeps "
            f"a picture's aspect: got {', '.join(tilings)}. Leave them out."
        )
    if knobs.tokens is None or family.pixels is None:
        return None
    if isinstance(knobs.tokens, str):
        raise KnobError(
            f"tokens of {family.model_type!r} models must be a whole number, tiers are of tilings, got "
            f"{knobs.tokens!r}. Give for example 256."
        )
    return plan_pictures(source, family.pixels, knobs.tokens)


def form_of(checkpoint: Checkpoint) -> Form:
    """The form that stored weights are for: codes and stacked experts have one, all others are for any."""
    packing = packing_of(checkpoint.config)
    if not checkpoint.architecture.complete and packing is None:
        return REFERENCE
    for form in FORMS:
        if packing is not None and packing.bits == form.bits:
            return form
        if form.stacked and form.stored is not None and is_stacked(checkpoint, DTYPES[form.stored]):
            return form
    return REFERENCE


def _check_form(source: Checkpoint, own: Form, form: Form, dtype: str) -> None:
    if own.bits and (form != own or dtype != "source"):
        raise KnobError(
            f"the weights of {name_of(source.path)} are quantised, and so are its variants: their form is {own.name}, "
            f"got {form.name} with dtype {dtype}. Leave both out, or export from the source it was made of."
        )
    if not form.takes(dtype):  # nobody asked for the form, or its setting would have been refused
        raise KnobError(
            f"the weights of {name_of(source.path)} are laid out for the {own.name} form, which is {own.stored}, and "
            f"so are its variants: got dtype {dtype!r}. Leave it out, or give another --form."
        )


def own_policy(source: Checkpoint) -> tuple[int | str | None, str, str]:
    """Tokens, resize and rule of a variant; of any other model the stock tiling."""
    stored = variant_policy(source)
    if stored is None:
        return None, *DEFAULT_POLICY
    resize, rule = (str(stored.get(key, usual)) for key, usual in zip(("resize", "rule"), DEFAULT_POLICY, strict=True))
    return parse_tokens(stored.get("vision_tokens")), resize, rule


def plan_vision(source: Checkpoint, tokens: int | str | None, resize: str, rule: str) -> Vision:
    """Check the budget against the model's longest sequence and list the tilings it allows."""
    most = max_crops(source)
    if tokens is None:
        tilings = tuple(t for n in range(1, most + 1) for t in tiling.tilings(n))
        return Vision(None, None, most, resize, rule, tilings)
    budget = tiling.check_budget(tokens, source.settings.max_positions)
    exact = budget.crops if isinstance(tokens, int) else None
    return Vision(tokens, exact, budget.max_crops, resize, rule, tuple(budget.tilings))


def _too_long(source: Checkpoint, vision: Vision) -> str | None:
    """A warning where the stock tiling of some image doesn't fit; a budget that doesn't was refused already."""
    longest = max(tiling.image_tokens(r, c) for r, c in vision.tilings)
    needed = 1 + longest + tiling.TEXT_RESERVE
    if vision.tokens is not None or needed <= source.settings.max_positions:
        return None
    return (
        f"an image of {vision.max_crops} crops takes up to {longest} tokens: {needed} with some text, the model has "
        f"{source.settings.max_positions} positions. Set tokens to a budget that fits"
    )
