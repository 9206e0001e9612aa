"""Stage 1: the vision tower, its pooling and projector learn to see, from pixels.

Every one of the 144 features of a crop is asked by linear heads what lies there: shape, colour, number, whether a
thing's centre is in its cell, and where on the picture it is. The heads are thrown away afterwards. Crops, masks and
their shift are those of the real preprocessing; budgets are drawn as in stage 2.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from artifacts.nano import pictures
from artifacts.nano.job import SEED, Job
from artifacts.nano.pictures import COLOURS, DIGITS, SHAPES, Scene
from transform.molmoe import MolmoEConfig
from transform.molmoe.modeling_molmoe import MolmoEVisionBackbone
from transform.molmoe.preprocessing import MEAN, STD, _fit, _patches, choose_tiling
from transform.molmoe.tiling import CROP, PATCH, PATCHES, WINDOW, Tiling, tiling_to_resolution

CELL = 28  # pixels of a pooled feature
READABLE = 9  # a number is asked for where it is at least that many pixels high in the crop
IGNORE = -100
PLACE_GAIN = 4.0
PARTS = {"shape": len(SHAPES) + 1, "colour": len(COLOURS) + 1, "digit": len(DIGITS), "centre": 2, "place": 2}


class Crop(NamedTuple):
    """What the tower takes, and what lies in each of its 144 cells."""

    patches: NDArray[np.float32]  # [576, 588]
    mask: NDArray[np.float32]  # [576]
    labels: NDArray[np.int64]  # [144, 4]: shape, colour, digit, centre
    place: NDArray[np.float32]  # [144, 2]: y, x of the thing on the picture, -1..1; NaN = not asked


def budget(dice: Random, size: tuple[int, int]) -> int | None:
    """The vision budget that a picture is shown with: mostly the released model's choice."""
    if size in pictures.SMALL:
        return dice.choices([None, 432, 720, 1008, 1440], [76, 8, 6, 6, 4])[0]
    if size in pictures.MEDIUM:
        return dice.choices([None, 288, 720, 1008, 1440], [56, 18, 10, 10, 6])[0]
    return dice.choices([None, 288, 432, 720, 1440], [56, 14, 10, 10, 10])[0]


def frame(height: int, width: int, canvas: Tiling) -> tuple[float, int, int, int, int]:
    """(scale, top, left, height, width) of the letterboxed picture."""
    scale = min(np.float32(canvas[0]) / np.float32(height), np.float32(canvas[1]) / np.float32(width))
    h, w = int(np.float32(height) * scale), int(np.float32(width) * scale)
    return float(scale), (canvas[0] - h) // 2, (canvas[1] - w) // 2, h, w


def _mask(top: int, left: int, h: int, w: int, y: int, x: int) -> NDArray[np.float32]:
    """Unpadded share [576] of the patches of the tile at (y, x)."""

    def share(start: int, length: int, at: int) -> NDArray[np.float32]:
        edges = at + PATCH * np.arange(PATCHES + 1)
        inside = np.clip(edges, start, start + length)
        return (np.diff(inside) / PATCH).astype(np.float32)

    return np.outer(share(top, h, y), share(left, w, x)).reshape(-1)


def label(
    shown: Scene, scale: float, dy: float, dx: float, whole: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What is in each cell of the crop, a thing at (y, x) of the picture being at (y*scale+dy, x*scale+dx)."""
    labels = np.zeros((12, 12, 4), np.int64)
    labels[..., 2] = IGNORE
    place = np.full((12, 12, 2), np.nan, np.float32)
    middles = CELL * np.arange(12) + CELL / 2
    readable = 14 * scale >= READABLE
    for t in shown.things:
        cy, cx, r = t.y * scale + dy, t.x * scale + dx, t.radius * scale
        if not (-r < cy < CROP + r and -r < cx < CROP + r):
            continue
        near = (abs(middles[:, None] - cy) < 0.7 * r) & (abs(middles - cx) < 0.7 * r)
        here = (int(cy // CELL), int(cx // CELL))
        inside = 0 <= here[0] < 12 and 0 <= here[1] < 12
        if inside:
            near[here] = True
        labels[near, 0], labels[near, 1] = 1 + SHAPES.index(t.shape), 1 + list(COLOURS).index(t.colour)
        if whole:
            place[near] = 2 * t.y / shown.height - 1, 2 * t.x / shown.width - 1
        if inside:
            labels[here[0], here[1], 3] = 1
            edge = min(cy, cx, CROP - cy, CROP - cx) > 7 * scale  # the whole number is in this crop
            labels[here[0], here[1], 2] = t.digit - 1 if readable and edge else IGNORE
    return labels.reshape(144, 4), place.reshape(144, 2)


def crops(number: int, split: str = "vision") -> Iterator[Crop]:
    """The global view, or up to two tiles, of a drawn picture."""
    shown, dice = pictures.scene(split, number), Random(f"crops {split} {number}")
    pixels = shown.draw()
    size = (shown.height, shown.width)
    tiling = choose_tiling(*size, budget(dice, size), 12, "canvas")
    canvas = tiling_to_resolution(tiling)
    scale, top, left, h, w = frame(*size, canvas)
    corners = [(WINDOW * i, WINDOW * j) for i in range(tiling[0]) for j in range(tiling[1])]
    masks = [_mask(top, left, h, w, y, x) for y, x in corners]
    masks.append(np.full(PATCHES * PATCHES, -1, np.float32))
    if dice.random() < 0.5:
        small, up, across, *_ = frame(*size, (CROP, CROP))
        whole, _ = _fit(pixels, (CROP, CROP), "pad")
        yield Crop(_patches((whole - MEAN) / STD), masks[0], *label(shown, small, up, across, True))
        return
    tiled, _ = _fit(pixels, canvas, "pad")
    for index in dice.sample(range(len(corners)), min(2, len(corners))):
        y, x = corners[index]
        patches = _patches((tiled[y : y + CROP, x : x + CROP] - MEAN) / STD)
        yield Crop(patches, masks[index + 1], *label(shown, scale, top - y, left - x, tiling == (1, 1)))


def batches(size: int, start: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Patches [B, 1, 576, 588], masks [B, 1, 576], labels [B, 144, 4], places [B, 144, 2], without end."""
    number, waiting = start, list[Crop]()
    while True:
        while len(waiting) < size:
            waiting += crops(number)
            number += 1
        batch, waiting = waiting[:size], waiting[size:]
        patches, masks, labels, places = (torch.from_numpy(np.stack(part)) for part in zip(*batch, strict=True))
        yield patches[:, None], masks[:, None], labels, places


class Heads(nn.ModuleDict):
    """One linear head for each thing that is asked."""

    def __init__(self, width: int) -> None:
        super().__init__({name: nn.Linear(width, size) for name, size in PARTS.items()})

    def losses(self, features: Tensor, labels: Tensor, places: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Losses by part, and the share of right answers (on things, where there are some)."""
        losses, right = {}, {}
        on_thing = labels[..., 0] > 0
        for n, part in enumerate(("shape", "colour", "digit", "centre")):
            logits, target = self[part](features), labels[..., n]
            each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE, reduction="none")
            weight = (torch.where(on_thing, 1.0, 0.1) * (target != IGNORE)).flatten()
            losses[part] = (each * weight).sum() / weight.sum().clamp(min=1)
            asked = (on_thing if part != "digit" else target != IGNORE) & (target != IGNORE)
            if part == "centre":
                asked = target == 1
            right[part] = float((logits.argmax(-1) == target)[asked].float().mean())
        known = ~places.isnan()
        error = (self["place"](features) - places)[known]
        losses["place"] = error.pow(2).mean() * 2
        right["place"] = float(error.detach().abs().mean())
        return losses, right


def initialise(backbone: MolmoEVisionBackbone, seed: int) -> None:
    """Xavier weights, zero biases, positions as two-dimensional sines and cosines."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
        embeddings = backbone.image_vit.embeddings
        width = embeddings.position_embedding.weight.shape[1]
        embeddings.position_embedding.weight.copy_(torch.cat([torch.zeros(1, width), sines(PATCHES, width)]))
        embeddings.class_embedding.normal_(std=0.02, generator=generator)
        backbone.pad_embed.normal_(std=0.02, generator=generator)


def sines(side: int, width: int) -> Tensor:
    """[side², width]: a quarter each of sine and cosine of row and column, wavelengths from 2π up."""
    rates = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], -1)  # [side, width / 2]
    return torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], -1).flatten(0, 1)


def train(config: Mapping[str, Any], state: Path, cycles: Sequence[tuple[int, float]], batch: int = 32) -> None:
    """Train, or go on from `state`/vision.pt; the log goes to `state`/vision.jsonl."""
    backbone = MolmoEVisionBackbone(MolmoEConfig(**config))
    initialise(backbone, SEED)
    torch.manual_seed(SEED)
    heads = Heads(config["d_model"])
    job = Job(state, "vision", {"backbone": backbone, "heads": heads}, cycles)
    for patches, masks, labels, places in job.steps(lambda step: batches(batch, step * batch)):
        with torch.autocast("cpu", torch.bfloat16):
            features = backbone(patches, masks)[:, 0]
        losses, right = heads.losses(features.float(), labels, places)
        size = features.float().pow(2).mean()
        job.learn(sum(losses.values(), 0.01 * size), {**right, "size": size.item()})


def finished(state: Path, backbone: MolmoEVisionBackbone) -> None:
    """Load what stage 1 left: averaged weights, features of unit size, everything rounded to bfloat16.

    The two directions that carry the place are a fifth as large as those of colour and shape, and the decoder would
    take long to notice them: the projector's last matrix, which is linear, scales them up by `PLACE_GAIN`.
    """
    content = torch.load(state / "vision.pt", weights_only=True)
    averages = list(content["average"])
    last = json.loads((state / "vision.jsonl").read_text().splitlines()[-1])
    with torch.no_grad():
        for parameter, average in zip(backbone.parameters(), averages, strict=False):  # the heads' come behind
            parameter.copy_(average)
        last_matrix = backbone.image_projector.w2.weight  # [d, inner]
        last_matrix /= last["size"] ** 0.5
        last_matrix += (PLACE_GAIN - 1) * place_directions(content) @ last_matrix
        for parameter in backbone.parameters():
            parameter.copy_(parameter.bfloat16())


def place_directions(content: Mapping[str, Any]) -> Tensor:
    """The projection [d, d] onto what the place head looks at."""
    basis, _ = torch.linalg.qr(content["modules"]["heads"]["place.weight"].t())
    return basis @ basis.t()
