"""What knobcast knows about each model family, as data: one JSON file per `model_type`, or its difference to another.

A file says where blocks, router and experts live in the checkpoint (`roles`) and in memory (`modules`), which config
keys hold the sizes (`keys`) or must have which values because nothing else was verified (`requires`), how the model is
asked, and what runtimes call it. Code reads such files and answers questions; it has no family's name in it.
One more family is one more file, and one more row in `tests/test_checkpoint.py`.
"""

from collections.abc import Mapping

from transform.architectures.absent import absent_model_types as absent_model_types
from transform.architectures.read import known_model_types as known_model_types
from transform.architectures.read import read_architecture
from transform.architectures.records import Architecture as Architecture
from transform.architectures.records import Prompt as Prompt
from transform.architectures.records import QkNorm as QkNorm
from transform.architectures.records import Special as Special
from transform.architectures.records import TopK as TopK
from transform.architectures.records import beyond_the_model as beyond_the_model
from transform.architectures.settings import Settings as Settings
from transform.architectures.values import imported as imported
from transform.architectures.values import lookup as lookup
from transform.architectures.values import shown as shown
from transform.errors import CheckpointError


def architecture_named(model_type: object, travelling: bool = False) -> Architecture:
    """The family of a `model_type`; raises CheckpointError for one without a data file. `travelling`: its config names
    code beside it."""
    if model_type in known_model_types():
        return read_architecture(str(model_type))
    if found := absent_model_types().get(str(model_type)):
        others = f"Take a model of another family: {', '.join(known_model_types())}"
        raise CheckpointError(
            f"model_type must be one that can be cut, got {model_type!r}: {found.why}. {found.instead or others}."
        )
    code = ", whose code travels with the checkpoint (auto_map) and is never run" if travelling else ""
    raise CheckpointError(
        f"model_type must be one of {', '.join(known_model_types())}, got {model_type!r}{code}. "
        "Another family needs a class of transformers' own and a data file in transform/architectures/: what its "
        "blocks are called, which keys its config has, and lists that transformers derives; see docs/contributing.md."
    )


def architecture_of(config: Mapping[str, object]) -> Architecture:
    """The family of a config, checked to be one that every step supports."""
    found = architecture_named(config.get("model_type"), "auto_map" in config)
    found.check(config)
    return found
