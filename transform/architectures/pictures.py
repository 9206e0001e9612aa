"""What a family's data file says of pictures: a tower and tilings of its own, or a stock model's processor."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from transform.architectures.values import lookup, shown
from transform.errors import CheckpointError


@dataclass(frozen=True)
class TokenTexts:
    """The texts of the tokens that an image's stream is made of."""

    start: str
    end: str
    patch: str
    column: str


@dataclass(frozen=True)
class Tower:
    """Config keys of a vision tower's numbers."""

    blocks: str
    heads: str
    eps: str
    taps: str  # the blocks whose outputs are the features
    side: str  # pixels of a crop, down and across
    patch: str  # pixels of a patch's side
    pool: tuple[str, ...]  # patches per pooled window, down and across


@dataclass(frozen=True)
class Images:
    """What a family that sees has besides its decoder."""

    tokens: TokenTexts
    code: str  # dotted name of the package whose flat files travel with every variant
    processor: str  # dotted name of the class that cuts images
    module: str  # of the inner model: what only pictures need
    tower: Tower


class Fit(StrEnum):
    """How a processor that resizes by area counts a picture: once, or as often as a patch has frames, in a clip; tiny
    ones are then enlarged to a token's side first."""

    AREA = "area"
    CLIP = "clip"


@dataclass(frozen=True)
class Pixels:
    """A stock model's picture as patches of a grid, by a processor that resizes it by its area: what a budget of tokens
    is written to. The first four are config keys."""

    token: str  # id of the token in whose places a picture's features go
    patch: str  # pixels of a patch's side
    merge: str  # patches of a token, down and across
    frames: str  # of a patch: a picture is repeated as often
    usual: Mapping[str, int]  # what an absent one of these four means
    fit: Fit
    processors: tuple[str, ...]  # transformers' classes with this arithmetic, without Fast or Pil at their ends

    def number(self, config: Mapping[str, object], name: str) -> int:
        """One of the four by its name here; raises CheckpointError where it isn't a whole number from 1."""
        key: str = getattr(self, name)
        value = lookup(config, key, self.usual[name])
        if type(value) is not int or value < 1:
            raise CheckpointError(
                f"config.json: {key} must be a whole number from 1, got {shown(value)}. "
                "Restore the original config.json."
            )
        return value


class Shown(StrEnum):
    """How a stock model takes pictures: as small pictures of a grid, whole, as patches with their places, as crops."""

    TILES = "tiles"
    FRAMES = "frames"
    PLACES = "places"
    CROPS = "crops"


@dataclass(frozen=True)
class Noise:
    """A stock model's pictures where nothing is known of its processor: enough to show it some."""

    kind: Shown
    token: str  # config key of the id in whose places a picture's features go
