"""Where a stock model's processor holds the bounds of pictures, in pixels, and a variant's with others there.

transformers 5 reads `image_processor` inside processor_config.json, or else preprocessor_config.json; where both are,
both get the bounds. All other keys stay as they are, in their order. Videos have a file or a key of their own; where
they have none, transformers prepares them by the pictures' file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from transform.architectures import shown
from transform.architectures.pictures import Fit, Pixels
from transform.checkpoint import Checkpoint
from transform.errors import CheckpointError, KnobError
from transform.image_settings import PREPROCESSOR, PROCESSOR
from transform.pixel_budget import MOST_ASPECT, PixelBudget
from transform.pixel_range import ASPECT, MOST_TOKENS, check_budget, kept_to, least, most
from transform.plan_facts import PixelFacts
from transform.side_files import VIDEO
from transform.strict_json import Record, read_json
from transform.write import write_json

_INNER, _VIDEOS = "image_processor", "video_processor"  # of processor_config.json
_OLDER = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}  # beside `size`, and stronger
_STOCK = {"patch_size": 14, "merge_size": 2}  # what an absent key of the file means in all families


@dataclass(frozen=True)
class Place:
    """A file that says how pictures are prepared, and what it says of it."""

    file: str
    settings: Mapping[str, object]
    inner: bool  # in a part of the file

    def bound(self, key: str) -> object:
        """`shortest_edge` or `longest_edge` as the processor takes it, whatever it is."""
        size = self.settings.get("size")
        own = size.get(key) if isinstance(size, Mapping) else None
        older = self.settings.get(_OLDER[key])
        return own if older is None else older


@dataclass(frozen=True)
class PicturePlan:
    """A budget and the files that get it."""

    budget: PixelBudget
    files: tuple[str, ...]

    def as_dict(self) -> PixelFacts:
        """For plan and manifest; counts are real ones, of all sizes up to these aspects."""
        budget = self.budget
        return {
            "tokens": budget.tokens,
            "least": least(budget),
            "most": most(budget),
            "aspect": ASPECT,
            "kept_below_aspect": round(kept_to(budget) - 0.005, 2),
            "most_of_any": most(budget, MOST_ASPECT),
            "token_side": budget.side,
            "shortest_edge": budget.shortest_edge,
            "longest_edge": budget.longest_edge,
            "files": list(self.files),
        }


def plan_pictures(source: Checkpoint, pixels: Pixels, tokens: int) -> PicturePlan:
    """The budget for a source's processor; raises KnobError or CheckpointError where it can't have it."""
    found = places(source)
    if not found:
        raise KnobError(
            f"a budget of tokens is written to the processor's file, and {source.path} has neither {PREPROCESSOR} nor "
            f"{PROCESSOR} with {_INNER}, got tokens={tokens}. Get the file from the release, or leave tokens out."
        )
    budget = _budget(source, pixels, tokens)
    for place in found:
        _check(place, source, pixels)
    check_budget(budget, source.settings.max_positions)
    return PicturePlan(budget, tuple(place.file for place in found))


def picture_warnings(source: Checkpoint, plan: PicturePlan) -> list[str]:
    """What a budget does beyond the source's own bounds, and to videos."""
    warnings, budget = [], plan.budget
    bounds = [bound for place in places(source) if type(bound := place.bound("longest_edge")) is int]
    area = budget.side**2 * budget.frames
    if bounds and (own := min(bounds)) < budget.longest_edge:
        warnings.append(
            f"{budget.tokens} tokens are more than the source's processor gives a picture, {own // area}: the knob "
            "allows it, nobody says that the model was trained for it"
        )
    if not _has_videos(source):
        warnings.append(
            f"videos have no settings of their own beside this model ({VIDEO}): transformers prepares them by "
            f"{plan.files[0]} too, where the budget is one for all frames of a video together"
        )
    return warnings


def write_budget(directory: Path, plan: PicturePlan) -> None:
    """The same files in a variant's directory, with the budget's bounds."""
    for place in _places(directory, plan.files):
        stored = read_json(directory / place.file)
        changed = _bounded(place.settings, plan.budget)
        write_json(directory / place.file, stored | {_INNER: changed} if place.inner else changed)


def written_budget(variant: Checkpoint, pixels: Pixels) -> PicturePlan:
    """The budget that a variant's files hold; raises CheckpointError where they hold none."""
    found = places(variant)
    tokens = set()
    for place in found:
        bounds = tuple(place.bound(key) for key in _OLDER)
        unit = _budget(variant, pixels, 1)
        count = bounds[1] // unit.longest_edge if type(bounds[1]) is int else 0
        held = _budget(variant, pixels, count)
        if not 1 <= count <= MOST_TOKENS or bounds != (held.shortest_edge, held.longest_edge):
            raise CheckpointError(
                f"{place.file}: size must be a budget, {unit.longest_edge} pixels per token and at least three "
                f"quarters of all, for 1 to {MOST_TOKENS:,} tokens, got {shown(list(bounds))}. "
                "Export the variant again."
            )
        tokens.add(count)
    if len(tokens) != 1:
        raise CheckpointError(
            f"one budget of tokens must be in the processor's files, got {sorted(tokens)}. Export the variant again."
        )
    return PicturePlan(_budget(variant, pixels, tokens.pop()), tuple(place.file for place in found))


def places(checkpoint: Checkpoint) -> tuple[Place, ...]:
    """Every file of a checkpoint that says how pictures are prepared, the one that counts first."""
    return tuple(_places(checkpoint.path, checkpoint.side_files))


def _places(directory: Path, files: tuple[str, ...]) -> Iterator[Place]:
    if PROCESSOR in files:
        inner = read_json(directory / PROCESSOR).get(_INNER)
        if isinstance(inner, Mapping):
            yield Place(PROCESSOR, inner, True)
    if PREPROCESSOR in files:
        yield Place(PREPROCESSOR, read_json(directory / PREPROCESSOR), False)


def _budget(checkpoint: Checkpoint, pixels: Pixels, tokens: int) -> PixelBudget:
    side = pixels.number(checkpoint.config, "patch") * pixels.number(checkpoint.config, "merge")
    frames = pixels.number(checkpoint.config, "frames") if pixels.fit is Fit.CLIP else 1
    return PixelBudget(tokens, side, pixels.fit, frames)


def _check(place: Place, source: Checkpoint, pixels: Pixels) -> None:
    """Refuse a processor whose arithmetic isn't the family's, or whose numbers aren't the model's."""
    settings, kind = place.settings, place.settings.get("image_processor_type")
    if kind is not None and str(kind).removesuffix("Fast").removesuffix("Pil") not in pixels.processors:
        raise KnobError(
            f"{place.file}: image_processor_type must be {' or '.join(pixels.processors)}, whose way of resizing is "
            f"known here, got {shown(kind)}. Leave tokens out, or set the processor's size by hand."
        )
    if settings.get("do_resize") is False:
        raise KnobError(
            f"{place.file}: do_resize must not be false, or pictures keep their sizes whatever the budget. "
            "Leave tokens out, or restore the original file."
        )
    for key, name in (("patch_size", "patch"), ("merge_size", "merge"), ("temporal_patch_size", "frames")):
        wanted = pixels.number(source.config, name)
        value = settings.get(key, _STOCK.get(key, wanted))
        if value != wanted:
            raise CheckpointError(
                f"{place.file}: {key} must be {wanted} as in config.json, it is {shown(value)}"
                f"{'' if key in settings else ', which transformers takes where there is none'}. "
                "Restore the original files."
            )


def _bounded(settings: Mapping[str, object], budget: PixelBudget) -> Record:
    """A processor's settings with the bounds under all names that they have there."""
    bounds = {"shortest_edge": budget.shortest_edge, "longest_edge": budget.longest_edge}
    size = settings.get("size")
    kept = size if isinstance(size, Mapping) and size.keys() == bounds.keys() else bounds  # in the order that it has
    older = {_OLDER[key]: value for key, value in bounds.items() if settings.get(_OLDER[key]) is not None}
    return {**settings, "size": {key: bounds[key] for key in kept}, **older}


def _has_videos(source: Checkpoint) -> bool:
    inner = PROCESSOR in source.side_files and isinstance(read_json(source.path / PROCESSOR).get(_VIDEOS), Mapping)
    return inner or VIDEO in source.side_files
