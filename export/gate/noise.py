"""Pictures of noise in the forms that stock models take them in: what the gate shows where no processor is at hand.

Each has several pictures; sizes follow from the config. Nothing here knows how a processor makes such inputs of a file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from transform.architectures import lookup
from transform.architectures.pictures import Noise, Shown

PICTURES = 2
PLACES = ((2, 3), (3, 2))  # rows and columns in tokens of pictures whose patches come with their places


@dataclass(frozen=True)
class Drawn:
    """`inputs`: keyword arguments of the model, all but the prompt; `counts`: each picture's tokens."""

    inputs: Mapping[str, torch.Tensor]
    counts: tuple[int, ...]


def noise(*shape: int) -> torch.Tensor:
    """Values from -1 to 1 of this shape, the same every time."""
    generator = np.random.Generator(np.random.PCG64(0))
    return torch.from_numpy(generator.integers(0, 256, shape).astype(np.float32) / 127.5 - 1)


def drawn_pictures(shown: Noise, config: Mapping[str, object]) -> Drawn | None:
    """Pictures for a family's config; None where the config hasn't the numbers."""
    makers = {Shown.TILES: _tiles, Shown.FRAMES: _frames, Shown.PLACES: _places, Shown.CROPS: _crops}
    try:
        return makers[shown.kind](config)
    except (TypeError, ValueError, KeyError):  # numbers that this config lacks, or has as something else
        return None


def _tiles(config: Mapping[str, object]) -> Drawn:
    """Patches that are small pictures, and the grid that they make; squares of two by two are a token."""
    patch = int(lookup(config, "vision_config.patch_size"))
    grids = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in PLACES])
    values = noise(int(grids.prod(-1).sum()), 3, patch, patch)
    counts = tuple(rows * columns for rows, columns in PLACES)
    return Drawn({"pixel_values": values, "image_grid_thw": grids}, counts)


def _frames(config: Mapping[str, object]) -> Drawn:
    """Whole pictures of one size; tokens by how many patches one has."""
    side, patch = (int(lookup(config, f"vision_config.{key}")) for key in ("image_size", "patch_size"))
    tokens = int(lookup(config, "projector_patch_to_query_dict")[str((side // patch) ** 2)])
    return Drawn({"pixel_values": noise(PICTURES, 3, side, side)}, (tokens,) * PICTURES)


def _places(config: Mapping[str, object]) -> Drawn:
    """Patches and where they lie; squares of some of them are a token."""
    patch = int(lookup(config, "vision_config.patch_size"))
    pool = int(lookup(config, "vision_config.pooling_kernel_size", 3))
    grids = [torch.cartesian_prod(torch.arange(rows * pool), torch.arange(columns * pool)) for rows, columns in PLACES]
    places = torch.stack([grid.flip(-1) for grid in grids])  # x, y
    values = noise(*places.shape[:2], 3 * patch**2)
    counts = tuple(rows * columns for rows, columns in PLACES)
    return Drawn({"pixel_values": values, "image_position_ids": places}, counts)


def _crops(config: Mapping[str, object]) -> Drawn:
    """Crops as patches, one of each picture; squares of two by two are a token, cut off at the edges."""
    sides, patch = lookup(config, "vision_config.image_size"), int(lookup(config, "vision_config.patch_size"))
    rows, columns = (int(side) // patch for side in sides)
    tokens = math.ceil(rows / 2), math.ceil(columns / 2)
    index = torch.nn.functional.pad(
        torch.arange(rows * columns).view(rows, columns), (0, columns % 2, 0, rows % 2), value=-1
    )
    squares = index.view(tokens[0], 2, tokens[1], 2).transpose(1, 2).reshape(-1, 4)
    later = torch.where(squares < 0, squares, squares + rows * columns)
    inputs = {
        "pixel_values": noise(PICTURES, rows * columns, 3 * patch**2),
        "image_token_pooling": torch.cat((squares, later)),
        "image_grids": torch.tensor([[*tokens, 0, 0]] * PICTURES),
        "image_num_crops": torch.ones(PICTURES, dtype=torch.int64),
    }
    return Drawn(inputs, (tokens[0] * tokens[1],) * PICTURES)
