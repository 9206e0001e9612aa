"""The gate's picture as the model sees it: crops, masks, index map and token ids for the variant's own policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.gate.picture import drawn_picture
from export.run.io_file import policy_in
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.modality import IMAGE
from transform.molmoe.preprocessing import preprocess
from transform.special_tokens import begin_id, image_token_ids

if TYPE_CHECKING:
    import torch

TEXT = 6


@dataclass(frozen=True)
class ImageProbe:
    """One prompt with one picture: `input_ids` [1, s] with BOS, `image_input_idx` [1, n, 144] counting it,
    `images` [1, n, 576, 588], `image_masks` [1, n, 576], `feature_index` [t] for the vision graph."""

    input_ids: Array
    images: Array
    image_masks: Array
    image_input_idx: Array
    feature_index: Array

    def for_torch(self) -> "dict[str, torch.Tensor]":
        """Keyword arguments of the PyTorch model."""
        import torch

        return {
            name: torch.from_numpy(getattr(self, name))
            for name in ("input_ids", "images", "image_masks", "image_input_idx")
        }


def image_probe(
    checkpoint: Checkpoint, directory: Path, vision: Mapping[str, object], seed: int, size: tuple[int, int] = (150, 110)
) -> ImageProbe:
    """The drawn picture, `size` wide and high, under the policy `vision` (as io.json records it), followed by a few
    random tokens of both embedding tables."""
    ids = image_token_ids(checkpoint, directory)
    image = preprocess(drawn_picture(*size), **policy_in(vision))
    stream = image.image_tokens(**ids._asdict())
    vocab = checkpoint.settings.vocab
    base, extra = (checkpoint.tensor(table).shape[0] for table in IMAGE.tables)
    generator = np.random.Generator(np.random.PCG64(seed))
    text = generator.integers(0, vocab - 1, TEXT)
    text[::2] = generator.integers(base, base + extra, len(text[::2]))
    input_ids = np.concatenate(([begin_id(checkpoint, directory)], stream, text)).astype(np.int64)[None]
    index = np.where(image.image_input_idx < 0, image.image_input_idx, image.image_input_idx + 1)
    return ImageProbe(
        input_ids, image.images[None], image.image_masks[None], index[None].astype(np.int32), image.feature_index
    )
