"""What a setting will do, before anything is done: a printable value computed from headers and config alone.

Checkpoint and knobs in; the planned checkpoint, the vision policy, parameter counts, bytes and warnings out.
"""

from dataclasses import dataclass

from transform.agreement import check_experts, untied_head
from transform.checkpoint import Checkpoint
from transform.depth import drop_blocks
from transform.dtype import cast
from transform.errors import KnobError
from transform.forms import ROUNDED, Form, form_named
from transform.graphs import quantised_by, why_no_graphs
from transform.hub_cache import hub_id, name_of, revision_of
from transform.knobs import Knobs, canonical_name
from transform.packed_layout import Packing, activations_of, packed_bytes, packing_for, packing_of
from transform.picture_processor import PicturePlan
from transform.plan_facts import PlanFacts
from transform.sizes import active_parameters, parameters, weight_bytes
from transform.stack import stack_experts
from transform.stored_form import form_of, insist_on_form
from transform.tokenizer_file import FILE as TOKENIZER
from transform.tokenizer_file import tokenizer_warnings
from transform.top_k import beyond_training, set_top_k
from transform.vision_plan import DEFAULT_POLICY, Vision, plan_images

ADAPTER = "adapter_config.json"  # peft's


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


def make_plan(source: Checkpoint, knobs: Knobs) -> Plan:
    """Apply the passes (blocks, k, dtype, then the form's) to the headers; raises KnobError or BudgetError.

    None is not said. What isn't said about images stays as the source has it: a variant's budget is its variants' too.
    Where a budget is said, resize and rule that aren't are the usual ones.
    """
    check_experts(source)
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
    insist_on_form(source, source_form, form, knobs.dtype)
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
    vision, pictures, said = plan_images(source, knobs)
    warnings += said
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
