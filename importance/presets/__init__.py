"""Published MolmoE scores and block sets, one JSON file each, with provenance and noise stated inside.

A preset holds either scores (schema 1, as any scores file) or, under `sets`, the blocks to drop by the number
of blocks left. They are for models of 16 blocks and carry no claim to be the best choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from importance.scores import PREFIX, Scores, label, parse_scores, preset_names, read_object
from importance.search.top_k import keep_top_k
from transform.errors import KnobError, ScoresError

__all__ = ["BlockSets", "load_preset", "preset_names", "resolve"]


@dataclass(frozen=True)
class BlockSets:
    """Which blocks to drop for each number of blocks left; `noise` and `provenance` are for the reader."""

    source: str
    layers: int
    drop: Mapping[int, tuple[int, ...]]
    provenance: str
    noise: str

    def kept(self, blocks: int) -> tuple[int, ...]:
        """The blocks that stay when `blocks` are left."""
        if blocks == self.layers:
            return tuple(range(self.layers))
        if blocks not in self.drop:
            raise KnobError(
                f"{self.source} has sets for {', '.join(map(str, sorted(self.drop)))} blocks, got {blocks!r}. "
                "Choose one of these, or a preset with scores."
            )
        return tuple(block for block in range(self.layers) if block not in self.drop[blocks])


def load_preset(name: str, layers: int) -> Scores | BlockSets:
    """A preset by name (with or without `preset:`) for a model of `layers` blocks."""
    source = PREFIX + name.removeprefix(PREFIX)
    raw = read_object(source)
    if raw["layers"] != layers:
        raise ScoresError(
            f"{label(source)} is for models of {raw['layers']} blocks, this one has {layers}. "
            "Give --scores FILE with scores of this model, or --keep-blocks or --drop-blocks."
        )
    if "sets" not in raw:
        return parse_scores(raw, source, layers)
    drop = {int(blocks): tuple(dropped) for blocks, dropped in raw["sets"].items()}
    return BlockSets(source, layers, drop, raw["provenance"], raw["noise"])


def resolve(preset: str, blocks: int, layers: int = 16) -> tuple[int, ...]:
    """The blocks that stay when a preset chooses `blocks` of a model's `layers`."""
    found = load_preset(preset, layers)
    return found.kept(blocks) if isinstance(found, BlockSets) else keep_top_k(found.importance, blocks, layers)
