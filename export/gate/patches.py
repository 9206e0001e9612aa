"""Pictures of stock models as patches of grids, by transformers' processor with the files of a variant and its source.

A static side takes what the processor makes of drawn pictures with the files of the variant; its twin what the source's
makes with the same bounds set at run time. Patches of noise are for where there is no processor.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from export.gate.noise import noise
from export.gate.picture import drawn_picture
from transform.architectures.pictures import Pixels
from transform.checkpoint import Checkpoint
from transform.errors import VerificationError
from transform.picture_processor import places
from transform.pixel_budget import MOST_ASPECT, PixelBudget
from transform.plan import Plan

if TYPE_CHECKING:
    from transformers.image_processing_utils import BaseImageProcessor

SIZES = ((150, 110), (97, 40), (31, 90))  # width and height in pixels: wide, wider, tall
GRIDS = ((2, 3), (5, 1), (1, 4))  # rows and columns in tokens of pictures that are drawn as patches
COUNTED = 300  # sizes of pictures whose tokens are counted, here and by the processor


@dataclass(frozen=True)
class Patches:
    """`values` [q, 3·frames·patch²] and `grids` [n, 3], of each picture 1 and its rows and columns of patches."""

    values: torch.Tensor
    grids: torch.Tensor

    @property
    def inputs(self) -> Mapping[str, torch.Tensor]:
        """Keyword arguments of a model."""
        return {"pixel_values": self.values, "image_grid_thw": self.grids}

    def counts(self, merge: int) -> tuple[int, ...]:
        """Each picture's tokens."""
        return tuple((self.grids.prod(-1) // merge**2).tolist())

    def up_to(self, tokens: int, merge: int) -> "Patches | None":
        """The first pictures, together of at most so many tokens; None where the first has more."""
        ends = self.grids.prod(-1).cumsum(0)
        count = int((ends <= tokens * merge**2).sum())
        return Patches(self.values[: int(ends[count - 1])], self.grids[:count]) if count else None


def prepared(plan: Plan, written: Checkpoint, pixels: Pixels) -> tuple[Patches, Patches] | None:
    """The drawn pictures for a variant and for its twin; None where no budget was said and no processor can be used.

    Raises VerificationError where the processor doesn't keep the plan's budget, or the two sides' pictures differ.
    """
    budget = plan.pictures.budget if plan.pictures else None
    if not (budget or can_prepare(written)):
        return None
    ours, theirs = _prepared(written, None), _prepared(plan.source, budget)
    if not (torch.equal(ours.values, theirs.values) and torch.equal(ours.grids, theirs.grids)):
        raise VerificationError(
            "the variant's processor must prepare pictures as the source's with the same bounds at run time, "
            f"their grids are {ours.grids.tolist()} and {theirs.grids.tolist()}. No variant was written."
        )
    if budget:
        _check_counts(written, budget, ours, pixels.number(written.config, "merge"))
    return ours, theirs


def can_prepare(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has a processor that transformers can use here."""
    if not (places(checkpoint) and checkpoint.architecture.has_tower(checkpoint.config)):
        return False
    try:
        _prepared(checkpoint, None)
    except VerificationError:
        return False
    return True


def drawn_patches(patch: int, merge: int, frames: int) -> Patches:
    """Pictures of GRIDS whose patches are noise, the same every time."""
    grids = [[1, rows * merge, columns * merge] for rows, columns in GRIDS]
    values = noise(sum(rows * columns for _, rows, columns in grids), 3 * frames * patch**2)
    return Patches(values, torch.tensor(grids))


def _processor(checkpoint: Checkpoint) -> "BaseImageProcessor":
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(str(checkpoint.path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, TypeError) as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> VerificationError:
    return VerificationError(
        "the gate prepares pictures by transformers' processor, which can't be used: "
        f"{' '.join(str(error).split())[:200]}. Restore the processor's file, or use --no-verify."
    )


def _prepared(checkpoint: Checkpoint, budget: PixelBudget | None) -> Patches:
    """The drawn pictures by a checkpoint's processor, with a budget's bounds set at run time or with its own."""
    bounds = {} if budget is None else {"size": {
        "shortest_edge": budget.shortest_edge, "longest_edge": budget.longest_edge,
    }}  # fmt: skip
    images = [drawn_picture(*size) for size in SIZES]
    try:
        found = _processor(checkpoint)(images=images, return_tensors="pt", **bounds)
        return Patches(found["pixel_values"], found["image_grid_thw"])
    except (RuntimeError, ValueError, TypeError, LookupError) as error:  # whatever it says of its settings
        raise _unusable(error) from error


def _check_counts(written: Checkpoint, budget: PixelBudget, ours: Patches, merge: int) -> None:
    """The processor gives as many tokens as the plan counts: of the drawn pictures, and of many other sizes."""
    drawn = [budget.count(height, width) for width, height in SIZES]
    if drawn != (found := list(ours.counts(merge))):
        raise _miscounted(drawn, found)
    processor = _processor(written)
    for height, width in _sizes():
        patches = processor.get_number_of_image_patches(height, width)
        if patches != (wanted := budget.count(height, width) * merge**2):
            raise _miscounted(wanted, patches, f" patches of {width}×{height} pixels")


def _sizes() -> Iterable[tuple[int, int]]:
    draw = random.Random(0)
    sizes = ((draw.randint(1, 4000), draw.randint(1, 4000)) for _ in range(COUNTED))
    return (size for size in sizes if max(size) <= MOST_ASPECT * min(size) // 2)


def _miscounted(wanted: object, found: object, of: str = " tokens") -> VerificationError:
    return VerificationError(
        f"the processor must give the tokens that the plan counts: {wanted}{of} by the plan, {found} by transformers. "
        "No variant was written: please report this with the processor's file."
    )
