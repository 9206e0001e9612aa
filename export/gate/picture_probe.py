"""Pictures of stock models in the gate: one prompt for both sides, each with its own pictures, and what models give.

By transformers' processor where the family's is known and its files lie beside the weights (`patches.py`), else of
noise (`noise.py`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING

import numpy as np
import torch

from export.gate.noise import Drawn, drawn_pictures
from export.gate.patches import drawn_patches, prepared
from transform.architectures import lookup
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.errors import VerificationError
from transform.molmoe.compatibility import CACHE
from transform.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_TOKENS = 1024  # of a prompt's pictures: a budget of thousands would pass every block
GOLDEN = "picture.logits"
BY_PROCESSOR, OF_NOISE, NOT_SHOWN = "processor", "noise", "not shown"  # how pictures were compared
TEXT = 3  # tokens before, between and behind pictures


@dataclass(frozen=True)
class PictureProbe:
    """The same prompt for both sides, each with its own pictures as the model takes them."""

    ours: Mapping[str, torch.Tensor]
    theirs: Mapping[str, torch.Tensor]
    ids: torch.Tensor  # [1, s + 1]: the last one is given by itself, with a cache
    token: int
    how: str  # BY_PROCESSOR or OF_NOISE

    def run(
        self, model: "PreTrainedModel", pictures: Mapping[str, torch.Tensor], caching: bool = True
    ) -> dict[str, torch.Tensor]:
        """Logits of the prompt, and with a cache of one token behind it."""
        prompt, last = self.ids[:, :-1], self.ids[:, -1:]
        inner = [module for module in model.modules() if hasattr(module, "rope_deltas")]
        before = [module.rope_deltas for module in inner]
        kinds = {name: (prompt == self.token).int() for name in ("mm_token_type_ids", "moe_mm_token_type_ids")}
        taken = signature(model.forward).parameters
        kinds = {name: value for name, value in kinds.items() if name in taken}
        try:
            with torch.no_grad():
                whole = model(input_ids=prompt, use_cache=caching, **pictures, **kinds)
                found = {"picture": whole.logits}
                if caching:
                    found["picture_decode"] = model(input_ids=last, use_cache=True, **{CACHE: whole[CACHE]}).logits
        except (RuntimeError, ValueError, TypeError, LookupError) as error:  # whatever transformers says of a config
            raise VerificationError(
                "the gate shows pictures to the model, and PyTorch can't run it: "
                f"{' '.join(str(error).split())[:200]}. Use --no-verify to export it unverified."
            ) from error
        for module, deltas in zip(inner, before, strict=True):
            module.rope_deltas = deltas  # positions behind these pictures are no other prompt's
        return found


def picture_probe(plan: Plan, written: Checkpoint) -> PictureProbe | None:
    """Pictures for a variant and its twin; None for families that aren't known to see any.

    Raises VerificationError where the two sides' pictures differ, or aren't what was planned.
    """
    pixels = written.architecture.pixels
    found = prepared(plan, written, pixels) if pixels is not None else None
    if pixels is None or found is None:
        return drawn_probe(written)
    merge, token = (pixels.number(written.config, name) for name in ("merge", "token"))
    ours, theirs = (patches.up_to(MOST_TOKENS, merge) for patches in found)
    if ours is None or theirs is None:
        return drawn_probe(written)
    return PictureProbe(ours.inputs, theirs.inputs, _prompt(written, ours.counts(merge), token), token, BY_PROCESSOR)


def how_shown(probe: PictureProbe | None, checkpoint: Checkpoint) -> str | None:
    """How a stock model was shown pictures; None for those that see none."""
    if probe is not None:
        return probe.how
    stock = not checkpoint.architecture.modality.sees_images
    return NOT_SHOWN if stock and checkpoint.architecture.has_tower(checkpoint.config) else None


def drawn_probe(checkpoint: Checkpoint) -> PictureProbe | None:
    """The same prompt every time, with pictures of noise: what golden outputs are computed from. None where nothing is
    known of a family's pictures."""
    pixels, shown, config = checkpoint.architecture.pixels, checkpoint.architecture.noise, checkpoint.config
    if not checkpoint.architecture.has_tower(config):
        return None
    if pixels is not None:
        patch, merge, frames, token = (pixels.number(config, name) for name in ("patch", "merge", "frames", "token"))
        patches = drawn_patches(patch, merge, frames)
        return _showing(checkpoint, Drawn(patches.inputs, patches.counts(merge)), token)
    drawn, place = (drawn_pictures(shown, config), lookup(config, shown.token)) if shown else (None, None)
    return _showing(checkpoint, drawn, place) if drawn is not None and type(place) is int else None


def _showing(checkpoint: Checkpoint, drawn: Drawn, token: int) -> PictureProbe:
    return PictureProbe(drawn.inputs, drawn.inputs, _prompt(checkpoint, drawn.counts, token), token, OF_NOISE)


def picture_logits(model: "PreTrainedModel", checkpoint: Checkpoint) -> dict[str, Array]:
    """What a golden file has of pictures: the last logits [1, V] behind the drawn ones; nothing where there are
    none."""
    probe = drawn_probe(checkpoint)
    return {} if probe is None else {GOLDEN: probe.run(model, probe.ours, caching=False)["picture"][:, -1].numpy()}


def receiving(checkpoint: Checkpoint) -> int:
    """How many first blocks it takes to see pictures as all blocks do: those that receive features by their place, or
    one."""
    key = checkpoint.architecture.pinned
    receivers = lookup(checkpoint.config, key) if key else None
    return max(1, len(receivers)) if isinstance(receivers, list) else 1


def insist_on_pictures(model: "PreTrainedModel", probe: PictureProbe) -> None:
    """Raise VerificationError unless other pictures give other logits: else equal ones would prove nothing."""
    other = {**probe.ours, "pixel_values": -probe.ours["pixel_values"]}
    pairs = (probe.run(model, pictures, caching=False)["picture"] for pictures in (probe.ours, other))
    if torch.equal(*pairs):
        raise VerificationError(
            "other pictures must give other logits, the difference is 0: the model doesn't see them. "
            "No variant was written: please report this with the model's config.json."
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
