"""The errors a user can meet. Every message gives the rule, the numbers and the way out, in that order.

The files in `transform/molmoe/` travel with a variant and cannot import this one: they raise `ValueError`
subclasses of their own (`BudgetError`, `ImageError`), which the command line treats the same way.
"""


class KnobcastError(Exception):
    """Anything knobcast refuses to do; the message is meant for the user."""


class KnobError(KnobcastError):
    """A knob setting that the model can't have: k, blocks, tokens."""


class CheckpointError(KnobcastError):
    """A checkpoint that is missing, broken, hostile or of an unknown kind."""


class ArchitectureError(KnobcastError):
    """A family's data file that isn't what it must be; for whoever adds a family."""


class ScoresError(KnobcastError):
    """A scores file that can't be used for this model and this choice."""


class WriteError(KnobcastError):
    """A target that can't be written: it exists, is locked, or the disk is full."""


class VerificationError(KnobcastError):
    """A variant that isn't equal to the same knobs applied at run time, or whose files were changed."""


class PublishError(KnobcastError):
    """A registry that refuses or can't be reached, or that holds other bytes than were written."""
