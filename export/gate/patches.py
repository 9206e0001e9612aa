"""Pictures of stock models as the gate feeds them: patches of grids, by the variant's own processor where there is one.

A static side takes what transformers' processor makes of drawn pictures with the files of the variant; its twin what
the source's makes with the same bounds set at run time. Where no processor lies beside the weights, patches are drawn.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING

import numpy as np
import torch

from export.gate.picture import drawn_picture
from transform.checkpoint import Checkpoint
from transform.errors import VerificationError
from transform.molmoe.compatibility import CACHE
from transform.picture_processor import places
from transform.pixel_budget import MOST_ASPECT, PixelBudget
from transform.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor

SIZES = ((150, 110), (97, 40), (31, 90))  # width and height in pixels: wide, wider, tall
GRIDS = ((2, 3), (5, 1), (1, 4))  # rows and columns in tokens of pictures that are drawn as patches
COUNTED = 300  # sizes of pictures whose tokens are counted, here and by the processor
MOST_TOKENS = 1024  # of a prompt's pictures: a budget of thousands would pass every block
TEXT = 3  # tokens before, between and behind pictures


@dataclass(frozen=True)
class Patches:
    """`values` [q, 3·frames·patch²] and `grids` [n, 3], of each picture 1 and its rows and columns of patches."""

    values: torch.Tensor
    grids: torch.Tensor

    def up_to(self, tokens: int, merge: int) -> "Patches | None":
        """The first pictures, together of at most so many tokens; None where the first has more."""
        ends = self.grids.prod(-1).cumsum(0)
        count = int((ends <= tokens * merge**2).sum())
        return Patches(self.values[: int(ends[count - 1])], self.grids[:count]) if count else None


@dataclass(frozen=True)
class PatchProbe:
    """The same prompt for both sides, each with its own pictures."""

    ours: Patches
    theirs: Patches
    ids: torch.Tensor  # [1, s + 1]: the last one is given by itself, with a cache
    token: int

    def run(self, model: "PreTrainedModel", patches: Patches) -> dict[str, torch.Tensor]:
        """Logits of the prompt, and of one token behind it."""
        prompt, last = self.ids[:, :-1], self.ids[:, -1:]
        inner = [module for module in model.modules() if hasattr(module, "rope_deltas")]
        before = [module.rope_deltas for module in inner]
        kinds = {name: (prompt == self.token).int() for name in ("mm_token_type_ids", "moe_mm_token_type_ids")}
        taken = signature(model.forward).parameters
        with torch.no_grad():
            whole = model(
                input_ids=prompt, pixel_values=patches.values, image_grid_thw=patches.grids, use_cache=True,
                **{name: value for name, value in kinds.items() if name in taken},
            )  # fmt: skip
            step = model(input_ids=last, use_cache=True, **{CACHE: whole[CACHE]})
        for module, deltas in zip(inner, before, strict=True):
            module.rope_deltas = deltas  # positions behind these pictures are no other prompt's
        return {"picture": whole.logits, "picture_decode": step.logits}


def patch_probe(plan: Plan, written: Checkpoint) -> PatchProbe | None:
    """Pictures for a variant and its twin; None for families whose pictures aren't known as patches.

    Raises VerificationError where the processor doesn't keep the plan's budget, or the two sides' pictures differ.
    """
    pixels = written.architecture.pixels
    if pixels is None:
        return None
    number = partial(pixels.number, written.config)
    merge, budget = number("merge"), plan.pictures.budget if plan.pictures else None
    ours = theirs = None
    if places(written):
        static, dynamic = _prepared(written, None), _prepared(plan.source, budget)
        if not (torch.equal(static.values, dynamic.values) and torch.equal(static.grids, dynamic.grids)):
            raise VerificationError(
                "the variant's processor must prepare pictures as the source's with the same bounds at run time, "
                f"their grids are {static.grids.tolist()} and {dynamic.grids.tolist()}. No variant was written."
            )
        if budget:
            _check_counts(written, budget, static, merge)
        ours, theirs = static.up_to(MOST_TOKENS, merge), dynamic.up_to(MOST_TOKENS, merge)
    if ours is None or theirs is None:
        ours = theirs = drawn_patches(number("patch"), merge, number("frames"))
    counts = (ours.grids.prod(-1) // merge**2).tolist()
    ids = _prompt(written, counts, number("token"))
    return PatchProbe(ours, theirs, ids, number("token"))


def drawn_patches(patch: int, merge: int, frames: int) -> Patches:
    """Pictures of GRIDS whose patches are noise, the same every time."""
    grids = [[1, rows * merge, columns * merge] for rows, columns in GRIDS]
    generator = np.random.Generator(np.random.PCG64(0))
    shape = (sum(rows * columns for _, rows, columns in grids), 3 * frames * patch**2)
    values = generator.integers(0, 256, shape).astype(np.float32) / 127.5 - 1
    return Patches(torch.from_numpy(values), torch.tensor(grids))


def insist_on_pictures(model: "PreTrainedModel", probe: PatchProbe) -> None:
    """Raise VerificationError unless other pictures give other logits: else equal ones would prove nothing."""
    other = Patches(-probe.ours.values, probe.ours.grids)
    pairs = (probe.run(model, patches)["picture"] for patches in (probe.ours, other))
    if torch.equal(*pairs):
        raise VerificationError(
            "other pictures must give other logits, the difference is 0: the model doesn't see them. "
            "No variant was written: please report this with the model's config.json."
        )


def _processor(checkpoint: Checkpoint) -> "BaseImageProcessor":
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(str(checkpoint.path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, TypeError) as error:
        raise VerificationError(
            "the gate prepares pictures by transformers' processor, which can't be loaded: "
            f"{' '.join(str(error).split())[:200]}. Restore the processor's file, or use --no-verify."
        ) from error


def _prepared(checkpoint: Checkpoint, budget: PixelBudget | None) -> Patches:
    """The drawn pictures by a checkpoint's processor, with a budget's bounds set at run time or with its own."""
    bounds = {} if budget is None else {"size": {
        "shortest_edge": budget.shortest_edge, "longest_edge": budget.longest_edge,
    }}  # fmt: skip
    images = [drawn_picture(*size) for size in SIZES]
    found = _processor(checkpoint)(images=images, return_tensors="pt", **bounds)
    return Patches(found["pixel_values"], found["image_grid_thw"])


def _check_counts(written: Checkpoint, budget: PixelBudget, ours: Patches, merge: int) -> None:
    """The processor gives as many tokens as the plan counts: of the drawn pictures, and of many other sizes."""
    drawn = [budget.count(height, width) for width, height in SIZES]
    if drawn != (found := (ours.grids.prod(-1) // merge**2).tolist()):
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


def _prompt(checkpoint: Checkpoint, counts: Iterable[int], token: int) -> torch.Tensor:
    """[1, s + 1]: text, and behind it each picture's places and more text, none of it with a meaning of its own."""
    taken = {value for value in _numbers(checkpoint.config) if value < checkpoint.settings.vocab}
    generator = np.random.Generator(np.random.PCG64(0))
    plain = [i for i in generator.integers(0, checkpoint.settings.vocab, 400).tolist() if i not in taken]
    ids = plain[:TEXT]
    for n, count in enumerate(counts, 1):
        ids += [token] * count + plain[n * TEXT : (n + 1) * TEXT]
    return torch.tensor([[*ids, plain[-1]]])


def _numbers(config: Mapping[str, object]) -> Iterable[int]:
    """The ids of tokens that a config names."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif "token" in key and type(value) is int:
            yield value
