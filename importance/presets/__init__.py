"""Published MolmoE scores and block sets, one JSON file each, with provenance and noise stated inside.

A preset holds either scores (schema 1, as any scores file) or, under `sets`, the blocks to drop by the number
of blocks left. They are for models of 16 blocks and carry no claim to be the best choice.
"""

from importance.scores import PREFIX, Scores, label, parse_scores, preset_names, read_object
from importance.search.top_k import keep_top_k
from importance.sets import BlockSets, check_layers, parse_sets
from transform.errors import ScoresError

__all__ = ["BlockSets", "load_preset", "preset_names", "resolve"]


def load_preset(name: str, layers: int, model_type: str | None = None) -> Scores | BlockSets:
    """A preset by name (with or without `preset:`) for a model of `layers` blocks, of this family where one is said."""
    source = PREFIX + name.removeprefix(PREFIX)
    raw = read_object(source)
    if model_type not in (None, raw["model_type"]):
        raise ScoresError(
            f"{source} must be of the model's own family: it is of {raw['model_type']!r} models, this is a "
            f"{model_type!r} one. Measure its blocks with `knobcast score`, or name the blocks with --keep-blocks or "
            "--drop-blocks."
        )
    if "sets" in raw:
        return parse_sets(raw, label(source), layers)
    check_layers(raw, label(source), layers)
    return parse_scores(raw, source, layers)


def resolve(preset: str, blocks: int, layers: int = 16) -> tuple[int, ...]:
    """The blocks that stay when a preset chooses `blocks` of a model's `layers`."""
    found = load_preset(preset, layers)
    return found.keep_blocks(blocks) if isinstance(found, BlockSets) else keep_top_k(found.importance, blocks, layers)
