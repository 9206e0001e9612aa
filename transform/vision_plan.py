"""What a plan says of images: the tilings that a budget allows, or a stock processor's bounds in pixels."""

from dataclasses import dataclass

from transform.checkpoint import Checkpoint
from transform.errors import KnobError
from transform.image_settings import RESIZES, max_crops, variant_policy
from transform.knobs import Knobs, parse_tokens
from transform.molmoe import tiling
from transform.ownership import read_manifest
from transform.picture_processor import PicturePlan, picture_warnings, plan_pictures, written_budget
from transform.plan_facts import VisionFacts

DEFAULT_POLICY = ("pad", "canvas")


@dataclass(frozen=True)
class Vision:
    """How an image becomes tokens in the variant. `tokens`: the nominal budget, a tier, or None (stock tiling);
    `crops`: tiles without the global view, or None where an image may take fewer than `max_crops`."""

    tokens: int | str | None
    crops: int | None
    max_crops: int
    resize: str
    rule: str
    tilings: tuple[tuple[int, int], ...]

    def as_dict(self) -> VisionFacts:
        """For plan, manifest and io.json; token counts are real ones, per (rows, columns)."""
        return {
            "tokens": self.tokens,
            "crops": self.crops,
            "max_crops": self.max_crops,
            "resize": self.resize,
            "rule": self.rule,
            "tilings": [
                {
                    "rows": r,
                    "columns": c,
                    "nominal_tokens": (r * c + 1) * tiling.TOKENS_PER_CROP,
                    "patch_tokens": tiling.patch_tokens(r, c),
                    "image_tokens": tiling.image_tokens(r, c),
                }
                for r, c in self.tilings
            ],
        }


def plan_images(source: Checkpoint, knobs: Knobs) -> tuple[Vision | None, PicturePlan | None, list[str]]:
    """Tilings, or a budget in pixels, and the warnings about them; raises KnobError or BudgetError.

    What isn't said stays as the source has it: a variant's budget is its variants' too. Where a budget is said, resize
    and rule that aren't are the usual ones.
    """
    own = own_policy(source) if knobs.tokens is None else (knobs.tokens, *DEFAULT_POLICY)
    tokens = own[0]
    resize = own[1] if knobs.resize is None else knobs.resize
    rule = own[2] if knobs.rule is None else knobs.rule
    for option, word, words in (("resize", resize, RESIZES), ("rule", rule, tiling.RULES)):
        if word not in words:
            raise KnobError(f"{option} must be one of {', '.join(words)}, got {word!r}.")
    if not source.architecture.modality.sees_images:
        pictures = _stock_pictures(source, knobs)
        return None, pictures, picture_warnings(source, pictures) if pictures else []
    vision = plan_vision(source, tokens, resize, rule)
    unused = tiling.budget_warning(vision.crops) if isinstance(tokens, int) and vision.crops is not None else None
    return vision, None, [warning for warning in (unused, _too_long(source, vision)) if warning]


def _stock_pictures(source: Checkpoint, knobs: Knobs) -> PicturePlan | None:
    """The budget of a model whose pictures are its own processor's; raises KnobError for what such a model can't be
    told."""
    said = {"tokens": knobs.tokens, "resize": knobs.resize, "rule": knobs.rule}
    family, seeing = source.architecture, source.architecture.has_tower(source.config)
    pixels, given = family.pixels if seeing else None, [name for name, value in said.items() if value is not None]
    if given and pixels is None:
        lacking = "nothing is known here of how their processor counts tokens" if seeing else "see no images"
        raise KnobError(
            f"tokens, resize and rule are about images, and {family.model_type!r} models "
            f"{'have a processor of their own: ' if seeing else ''}{lacking}, got {', '.join(given)}. Leave them out."
        )
    if tilings := [name for name in given if name != "tokens"]:
        raise KnobError(
            f"resize and rule are about tilings, and the processor of {family.model_type!r} models has none, it keeps "
            f"a picture's aspect: got {', '.join(tilings)}. Leave them out."
        )
    if pixels is None:
        return None
    if knobs.tokens is None:  # a variant's budget is its variants' too
        return written_budget(source, pixels) if "pixels" in read_manifest(source.path) else None
    if isinstance(knobs.tokens, str):
        raise KnobError(
            f"tokens of {family.model_type!r} models must be a whole number, tiers are of tilings, got "
            f"{knobs.tokens!r}. Give for example 256."
        )
    return plan_pictures(source, pixels, knobs.tokens)


def own_policy(source: Checkpoint) -> tuple[int | str | None, str, str]:
    """Tokens, resize and rule of a variant; of any other model the stock tiling."""
    stored = variant_policy(source)
    if stored is None:
        return None, *DEFAULT_POLICY
    resize, rule = (str(stored.get(key, usual)) for key, usual in zip(("resize", "rule"), DEFAULT_POLICY, strict=True))
    return parse_tokens(stored.get("vision_tokens")), resize, rule


def plan_vision(source: Checkpoint, tokens: int | str | None, resize: str, rule: str) -> Vision:
    """Check the budget against the model's longest sequence and list the tilings it allows."""
    most = max_crops(source)
    if tokens is None:
        tilings = tuple(t for n in range(1, most + 1) for t in tiling.tilings(n))
        return Vision(None, None, most, resize, rule, tilings)
    budget = tiling.check_budget(tokens, source.settings.max_positions)
    exact = budget.crops if isinstance(tokens, int) else None
    return Vision(tokens, exact, budget.max_crops, resize, rule, tuple(budget.tilings))


def _too_long(source: Checkpoint, vision: Vision) -> str | None:
    """A warning where the stock tiling of some image doesn't fit; a budget that doesn't was refused already."""
    longest = max(tiling.image_tokens(r, c) for r, c in vision.tilings)
    needed = 1 + longest + tiling.TEXT_RESERVE
    if vision.tokens is not None or needed <= source.settings.max_positions:
        return None
    return (
        f"an image of {vision.max_crops} crops takes up to {longest} tokens: {needed} with some text, the model has "
        f"{source.settings.max_positions} positions. Set tokens to a budget that fits"
    )
