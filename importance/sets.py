"""Block sets: which blocks to drop for each number of blocks left, as a search over whole sets finds them.

The file is a scores file's sibling (schema 1) with `sets` instead of one score per block. Sets need not be nested:
the best set of 12 may not hold the best set of 14, which no single ranking can say.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from importance.scores import Scores, optional, parse_scores, write_object
from transform.errors import KnobError, ScoresError

_FORM = 'Accepted: {"schema": 1, "layers": 16, "sets": {"12": [2, 4, 10, 13], ...}, "scores": [optional, as blocks]}.'
_SCORES = ("metric", "unit", "higher_means", "baseline", "samples", "model_digest", "data_digest")
_KNOWN = {"schema", "layers", "sets", "scores", "provenance", "noise", "model_digest"}


@dataclass(frozen=True)
class BlockSets:
    """Which blocks to drop for each number of blocks left; `noise` and `provenance` are for the reader.

    scores: single-block scores the search began with, where the file has them; they choose nothing here.
    """

    source: str
    layers: int
    drop: Mapping[int, tuple[int, ...]]
    provenance: str = ""
    noise: str = ""
    model_digest: str | None = None
    scores: Scores | None = None
    notes: Mapping[str, object] = field(default_factory=dict)
    file_digest: str | None = field(default=None, compare=False)  # SHA-256 of the file

    def keep_blocks(self, blocks: int) -> tuple[int, ...]:
        """The blocks that stay when `blocks` are left."""
        if blocks == self.layers:
            return tuple(range(self.layers))
        if blocks not in self.drop:
            raise KnobError(
                f"{self.source} has sets for {', '.join(map(str, sorted(self.drop)))} blocks, got {blocks!r}. "
                "Choose one of these, or a file or preset with scores."
            )
        return tuple(block for block in range(self.layers) if block not in self.drop[blocks])

    def to_json(self) -> dict[str, object]:
        """The file's form, schema 1; the most blocks first."""
        scored = self.scores.to_json() if self.scores else {}
        return {
            "schema": 1,
            "layers": self.layers,
            "sets": {str(blocks): sorted(self.drop[blocks]) for blocks in sorted(self.drop, reverse=True)},
            **{key: scored[key] for key in _SCORES if key in scored},
            "model_digest": self.model_digest,
            **({"scores": scored["blocks"]} if scored else {}),
            "provenance": self.provenance,
            "noise": self.noise,
            **{key: value for key, value in self.notes.items() if key not in {*_KNOWN, *scored}},
        }


def parse_sets(raw: Mapping[str, object], source: str, layers: int) -> BlockSets:
    """Sets from a parsed file or preset, for a model of `layers` blocks."""
    if raw.get("schema", 1) != 1 or type(raw.get("schema", 1)) is not int:
        raise ScoresError(f"{source}: schema must be 1, got {raw['schema']!r}. {_FORM}")
    check_layers(raw, source, layers)
    sets = raw["sets"]
    if not isinstance(sets, Mapping) or not sets:
        raise ScoresError(f"{source}: sets must hold blocks to drop by the number of blocks left. {_FORM}")
    drop = {}
    for count, dropped in sets.items():
        if not re.fullmatch(r"[1-9][0-9]{0,5}", count, re.ASCII) or int(count) > layers:
            raise ScoresError(f"{source}: sets are for 1 to {layers} blocks left, got {count!r}. {_FORM}")
        drop[int(count)] = _dropped(dropped, int(count), source, layers)
    texts = {key: optional(raw, key, str, source, _FORM) for key in ("model_digest", "provenance", "noise")}
    scores = None
    if raw.get("scores") is not None:
        scored = {key: raw[key] for key in _SCORES if key in raw}
        scores = parse_scores({"schema": 1, "blocks": raw["scores"], **scored}, source, layers)
    return BlockSets(
        source, layers, drop, texts["provenance"] or "", texts["noise"] or "", texts["model_digest"], scores,
        {key: value for key, value in raw.items() if key not in (_KNOWN if scores is None else {*_KNOWN, *_SCORES})},
    )  # fmt: skip


def check_layers(raw: Mapping[str, object], source: str, layers: int) -> None:
    """Refuse sets or presets that are for models of another number of blocks."""
    if type(raw.get("layers")) is not int or raw["layers"] != layers:
        raise ScoresError(
            f"{source} is for models of {raw.get('layers')} blocks, this one has {layers}. "
            "Give --scores FILE with scores of this model, or --keep-blocks or --drop-blocks."
        )


def write_sets(
    path: Path,
    layers: int,
    drop: Mapping[int, Iterable[int]],
    *,
    scores: Scores | None = None,
    model_digest: str | None = None,
    provenance: str = "",
    noise: str = "",
    notes: Mapping[str, object] | None = None,
    force: bool = False,
) -> BlockSets:
    """Write sets as `--scores FILE` reads them, whole or not at all; returns what was written.

    drop: number of blocks left -> the blocks that go. scores: single-block scores to keep along. model_digest: None
    takes that of the scores. Refused: an existing file unless `force`, and whatever `parse_sets` would refuse.
    """
    if model_digest is None and scores is not None:
        model_digest = scores.model_digest
    sets = {blocks: tuple(sorted(dropped)) for blocks, dropped in drop.items()}
    content = BlockSets(path.name, layers, sets, provenance, noise, model_digest, scores, notes or {}).to_json()
    write_object(content, path, lambda raw: parse_sets(raw, path.name, layers), force)
    return parse_sets(content, path.name, layers)


def _dropped(dropped: object, count: int, source: str, layers: int) -> tuple[int, ...]:
    if not isinstance(dropped, list | tuple) or not all(type(b) is int and 0 <= b < layers for b in dropped):
        raise ScoresError(
            f"{source}: block indices run from 0 to {layers - 1} (the model has {layers} blocks), the set for {count} "
            f"blocks has {dropped!r}. Correct it."
        )
    if len(set(dropped)) != len(dropped) or len(dropped) != layers - count:
        raise ScoresError(
            f"{source}: {count} of {layers} blocks are left when {layers - count} different ones go, the set has "
            f"{len(set(dropped))}: {', '.join(map(str, dropped))}. Correct it."
        )
    return tuple(dropped)
