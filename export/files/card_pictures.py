"""How a variant's pictures become tokens, in words: for its card, and for plans."""

from transform.pixel_budget import MOST_ASPECT
from transform.plan_facts import PixelFacts, VisionFacts


def pixel_words(pixels: PixelFacts) -> str:
    """`192 to 256 for a picture up to 5:1; no more than 256 below 37.63:1, up to 384 beyond`."""
    usual = f"{pixels['least']} to {pixels['most']} for a picture up to {pixels['aspect']}:1"
    if pixels["most_of_any"] <= pixels["tokens"]:
        return f"{usual}, no more than {pixels['tokens']} for any (up to {MOST_ASPECT}:1)"
    return (
        f"{usual}; no more than {pixels['tokens']} below {pixels['kept_below_aspect']:g}:1, "
        f"up to {pixels['most_of_any']} beyond (up to {MOST_ASPECT}:1)"
    )


def pixel_lines(pixels: PixelFacts) -> list[str]:
    """The lines of a card about a budget in pixels."""
    size = f"`size: {{shortest_edge: {pixels['shortest_edge']}, longest_edge: {pixels['longest_edge']}}}`"
    side, files = pixels["token_side"], " and ".join(f"`{file}`" for file in pixels["files"])
    return [
        f"Images: budget {pixels['tokens']} tokens of {side}×{side} pixels; {pixel_words(pixels)}. Smaller pictures "
        f"are enlarged, larger ones made smaller, their aspect stays. "
        f"It is {size} in {files}: whatever reads that keeps it. "
        "Videos keep the source's settings where it has some for them.",
        "",
    ]


def tiling_lines(vision: VisionFacts) -> list[str]:
    """The lines of a card about a budget in tilings."""
    tilings = vision["tilings"]
    if vision["tokens"] is None:
        return [f"Images: stock tiling, at most {vision['max_crops']} crops and the global view.", ""]
    rows = [
        f"| {t['rows']}×{t['columns']} | {t['nominal_tokens']} | {t['patch_tokens']} | {t['image_tokens']} |"
        for t in tilings
    ]
    return [
        f"Images: budget {vision['tokens']}, resize `{vision['resize']}`, tiling by the `{vision['rule']}` rule.",
        "",
        "| tiling (rows×columns) | nominal tokens | image-patch tokens | whole image stream |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
