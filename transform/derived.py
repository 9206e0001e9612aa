"""Lists with a value per block that a config leaves out, for transformers derives them from the number of blocks.

With fewer blocks it would derive others, so they are asked for and written out before blocks are dropped. Only then:
this imports transformers, which plans of configs that carry their lists do without.
"""

from dataclasses import replace

from transform.checkpoint import Checkpoint
from transform.errors import CheckpointError
from transform.strict_json import with_floats


def with_derived_lists(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with every list that its family derives; itself where all are there."""
    family = checkpoint.architecture
    text = family.text_of(checkpoint.config)
    lacking = [key for key in family.derived if text.get(key) is None]
    if not lacking:
        return checkpoint
    from transformers import CONFIG_MAPPING

    plain = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    try:
        config = CONFIG_MAPPING[family.model_type].from_dict(with_floats(plain))
        known = config.get_text_config(decoder=True).to_dict()
    except Exception as error:  # whatever a config's class may raise
        raise CheckpointError(
            f"config.json must be one that transformers reads, for it lacks {', '.join(lacking)}, which follow from "
            f"it: {' '.join(str(error).split())[:200]}. Restore the original config.json, or correct that value."
        ) from error
    lists = {key: list(known[key]) for key in lacking if isinstance(known.get(key), list | tuple)}
    return replace(checkpoint, config=family.with_text(checkpoint.config, dict(text) | lists))
