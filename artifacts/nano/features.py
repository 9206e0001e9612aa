"""Between the stages: what the finished vision side sees on every training picture, kept on disk.

The vision side is frozen in stage 2, so each picture passes it once. It goes through the real preprocessing, tower,
pooling, padding embeddings and index map; only kept features are stored, in the order of the sequence.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from artifacts.nano import vision
from artifacts.nano.pictures import Scene, pictures
from importance.samples import Sample
from transform.molmoe.modeling_molmoe import MolmoEVisionBackbone
from transform.molmoe.preprocessing import Preprocessed, preprocess
from transform.molmoe.tiling import CROP, WINDOW, Tiling

CHUNK = 250  # pictures in a file


class Seen(NamedTuple):
    """One picture as the decoder gets it."""

    tiling: Tiling
    features: Tensor  # bfloat16 [t, d]
    thing: Tensor  # bool [t]: a thing lies here
    centre: Tensor  # bool [t]: its centre does


def seen(state: Path, backbone: MolmoEVisionBackbone, samples: list[Sample], split: str) -> list[Seen]:
    """All pictures of `samples` in their order; files that are there already are read."""
    files = list(dict.fromkeys(Path(str(sample.images[0])) for sample in samples))
    scenes = pictures(split, len(files))
    eyes = _digest(backbone)
    found: list[Seen] = []
    for start in track(range(0, len(files), CHUNK), "pictures seen"):
        chunk = [(file, next(scenes)[1]) for file in files[start : start + CHUNK]]
        stored = state / f"seen-{split}-{eyes}-{start:05d}.pt"
        if not stored.exists():
            made = [tuple(one) for one in _encode(backbone, chunk)]
            torch.save(made, stored.with_suffix(".tmp"))
            stored.with_suffix(".tmp").replace(stored)
        found += [Seen(*one) for one in torch.load(stored, weights_only=True)]
    return found


def _digest(backbone: MolmoEVisionBackbone) -> str:
    """Tells one training of the vision weights from another: what a file holds was seen with these."""
    digest = hashlib.sha256()
    for name, value in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _encode(backbone: MolmoEVisionBackbone, chunk: list[tuple[Path, Scene]]) -> list[Seen]:
    def cut(one: tuple[Path, Scene]) -> Preprocessed:
        file, shown = one
        return preprocess(file, vision.budget(Random(f"budget {file.name}"), (shown.height, shown.width)))

    results = []
    with ThreadPoolExecutor(2) as pool:
        for image, (_, shown) in zip(pool.map(cut, chunk), chunk, strict=True):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                masks = torch.from_numpy(image.image_masks)[None]
                features = backbone(torch.from_numpy(image.images)[None], masks)[0]
            kept = torch.from_numpy(image.feature_index)
            thing, centre = (torch.from_numpy(part)[kept] for part in _where(image, shown))
            results.append(Seen(image.tiling, features.flatten(0, 1)[kept].bfloat16().clone(), thing, centre))
    return results


def _where(image: Preprocessed, shown: Scene) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of all (n+1)*144 features lie on a thing, and which on a centre."""
    small, up, across, *_ = vision.frame(shown.height, shown.width, (CROP, CROP))
    scale, top, left, *_ = vision.frame(shown.height, shown.width, image.canvas)
    places = [(small, up, across)]
    places += [
        (scale, top - WINDOW * i, left - WINDOW * j) for i in range(image.tiling[0]) for j in range(image.tiling[1])
    ]
    labels = np.concatenate([vision.label(shown, *place, False)[0] for place in places])
    return labels[:, 0] > 0, labels[:, 3] == 1
