"""Which form stored weights are for, and which one they may be exported in."""

from transform.checkpoint import Checkpoint
from transform.errors import KnobError
from transform.forms import FORMS, REFERENCE, Form
from transform.hub_cache import name_of
from transform.knobs import DTYPES
from transform.packed_layout import packing_of
from transform.stack import is_stacked


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


def insist_on_form(source: Checkpoint, own: Form, form: Form, dtype: str) -> None:
    """Raise KnobError for a form or dtype that weights of their `own` form can't have."""
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
