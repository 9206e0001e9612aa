"""What a plan says of itself, by the words of flags and manifest: what tables, cards and manifests have."""

from typing import NotRequired, TypedDict


class TilingFacts(TypedDict):
    """A picture of rows × columns crops and the global view, in tokens; the last two are real counts."""

    rows: int
    columns: int
    nominal_tokens: int
    patch_tokens: int
    image_tokens: int


class VisionFacts(TypedDict):
    """How an image becomes tokens; see `plan.Vision`."""

    tokens: int | str | None
    crops: int | None
    max_crops: int
    resize: str
    rule: str
    tilings: list[TilingFacts]


class PixelFacts(TypedDict):
    """A budget of tokens as a processor's bounds in pixels; `least` and `most` tokens of pictures up to `aspect`."""

    tokens: int
    least: int
    most: int
    aspect: int
    kept_below_aspect: float  # no picture less narrow has more than `tokens`
    most_of_any: int
    token_side: int
    shortest_edge: int
    longest_edge: int
    files: list[str]


class SourceFacts(TypedDict):
    """Where the weights come from."""

    name: str
    revision: str | None
    layout_digest: str
    blocks: int
    top_k: list[int]
    parameters: int
    active_parameters: int
    bytes: int


class KnobFacts(TypedDict):
    """The knobs as they were said; None: as the source has it."""

    k: int | list[int] | None
    blocks: int
    tokens: int | str | None
    dtype: str
    form: str
    activations: str | None


class PlanFacts(TypedDict):
    """All of it; `vision` None: no pictures are cut, by code of a variant's own."""

    name: str
    model_type: str
    source: SourceFacts
    knobs: KnobFacts
    blocks_kept: list[int]
    blocks_removed: list[int]
    top_k: list[int]
    vision: VisionFacts | None
    parameters: int
    active_parameters: int
    bytes: int
    layout_digest: str
    warnings: list[str]
    graphs: NotRequired[str]  # why there are none
    pixels: NotRequired[PixelFacts]  # of a stock model's processor, where a budget was said
    left_out: NotRequired[list[str]]  # of the source's tensors, and why
