"""From what a user asks for (a number of blocks, a list to keep, a list to drop) to the blocks that stay.

Without scores a number of blocks is refused: there is no default order, least of all the first N.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from importance.presets import load_preset, preset_names
from importance.scores import (
    PREFIX,
    Scores,
    check_model,
    file_digest,
    label,
    model_digest,
    parse_scores,
    presets_for,
    read_object,
)
from importance.search.top_k import keep_top_k
from importance.sets import BlockSets, parse_sets
from transform.checkpoint import Checkpoint
from transform.depth import pinned_blocks
from transform.errors import KnobError, ScoresError

SCORES = "scores.json"
Source = Scores | BlockSets


def find_scores(
    model_dir: Path | None, option: str | Path | None, layers: int, digest: Callable[[], str] | None = None,
    model_type: str | None = None,
) -> Source:  # fmt: skip
    """What decides which blocks go: the file or `preset:NAME` asked for, else `scores.json` beside the model.

    A file holds scores or, under `sets`, whole sets of blocks. `digest` computes the model's `model_digest`; it is
    called only where there is a file to compare with. `model_type`: the family, which a preset must be of.
    """
    if option is not None and str(option).startswith(PREFIX):
        return replace(load_preset(str(option), layers, model_type), file_digest=file_digest(str(option)))
    path = Path(option) if option is not None else model_dir / SCORES if model_dir else None
    if path is None or (option is None and not path.is_file()):
        fitting = preset_names() if model_type is None else presets_for(model_type, layers)
        presets = f"or --scores preset:NAME ({', '.join(fitting)})" if fitting else "(`knobcast score` measures one)"
        raise ScoresError(
            f"a number of blocks needs scores that say which to drop; there is no {SCORES} beside the model. "
            f"Give --scores FILE {presets}, or name the blocks with --keep-blocks or --drop-blocks."
        )
    raw = read_object(path)
    found: Source = (parse_sets if "sets" in raw else parse_scores)(raw, label(path), layers)
    if digest is not None:
        check_model(found.source, found.model_digest, digest())
    return replace(found, file_digest=file_digest(path))


def choose_blocks(
    model: Checkpoint | int,
    *,
    blocks: int | None = None,
    keep: Sequence[int] | None = None,
    drop: Sequence[int] | None = None,
    scores: Source | str | Path | None = None,
    keep_first: bool = True,
    keep_last: bool = True,
) -> tuple[int, ...]:
    """The original indices of the blocks that stay, ascending; all of them when nothing is asked for.

    model: a checkpoint, or just how many blocks there are. At most one of `blocks` (how many stay, chosen by
    `scores`), `keep` and `drop` (original indices, in any order). scores: as read, or a file or `preset:NAME`;
    None means `scores.json` beside the checkpoint. They are looked up only where blocks must be ranked. Of a checkpoint
    blocks that its family can't do without stay whatever their score is.
    """
    layers = model if isinstance(model, int) else model.settings.layers
    asked = {
        name: value
        for name, value in (("--blocks", blocks), ("--keep-blocks", keep), ("--drop-blocks", drop))
        if value is not None
    }
    if len(asked) > 1:
        raise KnobError(f"blocks are chosen in one way, got {len(asked)}: {', '.join(asked)}. Use one of them.")
    if keep is not None:
        return tuple(sorted(_indices(keep, layers, "--keep-blocks")))
    if drop is not None:
        dropped = _indices(drop, layers, "--drop-blocks")
        if len(dropped) == layers:
            raise KnobError(f"at least one block must stay: all {layers} would be dropped. Drop fewer.")
        return tuple(block for block in range(layers) if block not in dropped)
    if blocks is None:
        return tuple(range(layers))
    if type(blocks) is not int or not 1 <= blocks <= layers:
        raise KnobError(f"blocks must be from 1 to {layers} (the model's blocks), got {blocks!r}. Choose one of these.")
    if blocks == layers:
        return tuple(range(layers))
    found = scores if isinstance(scores, Scores | BlockSets) else _find(model, scores)
    if isinstance(found, BlockSets):
        return found.keep_blocks(blocks)
    pinned = 0 if isinstance(model, int) else pinned_blocks(model)
    return keep_top_k(found.importance, blocks, layers, keep_first, keep_last, pinned)


def _find(model: Checkpoint | int, option: str | Path | None) -> Source:
    if isinstance(model, int):
        return find_scores(None, option, model)
    return find_scores(
        model.path, option, model.settings.layers, lambda: model_digest(model), model.architecture.model_type
    )


def _indices(named: Sequence[int], layers: int, flag: str) -> set[int]:
    if not named:
        raise KnobError(f"{flag} needs at least one block index from 0 to {layers - 1}, got none. Name the blocks.")
    wrong = [block for block in named if type(block) is not int or not 0 <= block < layers]
    if wrong:
        raise KnobError(
            f"{flag}: block indices run from 0 to {layers - 1} (the model has {layers} blocks), got "
            f"{', '.join(map(repr, wrong))}. Correct the list."
        )
    twice = sorted({block for block in named if list(named).count(block) > 1})
    if twice:
        raise KnobError(
            f"{flag}: each block is named once, got {', '.join(map(str, twice))} more than once. Remove one."
        )
    return set(named)
