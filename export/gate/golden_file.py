"""Read `golden.safetensors`, trusting nothing in it: whoever changes outputs may have computed the sums again.

What `golden.py` computes with must be there, of the right types and sizes, with ids that the model has. Values must be
finite: differences are measured by the largest one, and beside an infinity every difference is small.
"""

from pathlib import Path

import numpy as np

from export.gate.far import BEYOND
from export.gate.golden import FILE
from export.gate.image_probe import TEXT, ImageProbe
from export.gate.picture_probe import GOLDEN as PICTURE
from export.gate.preprocess import has_preprocess
from export.gate.probe import DECODE, MOST_WINDOW
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.errors import CheckpointError, VerificationError
from transform.molmoe.tiling import PATCH, PATCHES
from transform.safetensors_header import read_header
from transform.tokenizer_file import embedding_rows

# name -> dtype as the format spells it, shape: s and t tokens, V vocabulary, r rows, d width; of preprocess.onnx h, w
# sides (y, x), q patches of v values, n crops of p patches, f features, i ids
_TEXT = {"ids": ("I64", "1s"), "logits": ("F32", "1sV")}
_IMAGE = {
    "image.input_ids": ("I64", "1t"), "image.rows": ("I64", "r"), "image.embeddings": ("F32", "rd"),
    "image.logits": ("F32", "1V"),
}  # fmt: skip
_PICTURE = {
    "preprocess.image": ("U8", "yx3"), "preprocess.rows": ("I64", "q"), "preprocess.images": ("F32", "qv"),
    "preprocess.image_masks": ("F32", "np"), "preprocess.feature_index": ("I64", "f"),
    "preprocess.image_ids": ("I64", "i"),
}  # fmt: skip
_PATCHES = {PICTURE: ("F32", "1V")}  # of stock models, where it was recorded
BEHIND_ALL = "image.logits"  # a picture's hundreds of tokens would pass every block
MOST = MOST_WINDOW + BEYOND + DECODE  # tokens: the longest prompt of a gate
LEAST = DECODE + 2  # tokens: a prompt of two, which static graphs are given in two calls, and the steps


def load_golden(directory: Path, checkpoint: Checkpoint) -> dict[str, Array] | None:
    """The recorded arrays of a variant, or None where none were; raises VerificationError for anything irregular.

    Those of a variant that was proven block by block lack `BEHIND_ALL`; an earlier version's have the picture alone.
    """
    path = directory / FILE
    if not path.exists():
        return None
    if not path.is_file():
        raise _refused("it must be a plain file")
    try:
        header = {entry.name: (entry.dtype, entry.shape) for entry in read_header(path)}
    except CheckpointError as error:
        raise VerificationError(str(error)) from error
    _check_header(header, checkpoint, has_preprocess(directory))
    from safetensors.numpy import load_file

    golden = dict(load_file(path))
    _check_values(golden, checkpoint)
    return golden


def with_golden_ids(image: ImageProbe, golden: dict[str, Array], vocab: int) -> ImageProbe:
    """The picture prompt with the recorded text; its image stream must be the one that the policy gives.

    `vocab` is the number of text ids, with whose last one older versions began, whatever ends a text.
    """
    ids, wanted = golden["image.input_ids"], image.input_ids.copy()
    if ids[0, 0] == vocab - 1:
        wanted[0, 0] = vocab - 1
    if ids.shape != wanted.shape or not np.array_equal(ids[:, :-TEXT], wanted[:, :-TEXT]):
        raise _refused(
            f"image.input_ids must be the {wanted.shape[1] - TEXT} ids of the drawn picture under the variant's policy "
            f"and {TEXT} of text, it has {ids.shape[1]} others"
        )
    return ImageProbe(ids, image.images, image.image_masks, image.image_input_idx, image.feature_index)


def _check_header(header: dict[str, tuple[str, tuple[int, ...]]], checkpoint: Checkpoint, cuts: bool) -> None:
    wanted = _TEXT | (_IMAGE if checkpoint.architecture.modality.sees_images else {}) | (_PICTURE if cuts else {})
    family = checkpoint.architecture
    if PICTURE in header and (family.pixels or family.noise) and family.has_tower(checkpoint.config):
        wanted |= _PATCHES
    if cuts and header.keys() == _PICTURE.keys():
        wanted = _PICTURE  # of a variant that an earlier version verified block by block
    elif BEHIND_ALL not in header:
        wanted = {name: what for name, what in wanted.items() if name != BEHIND_ALL}
    if header.keys() != wanted.keys():
        raise _refused(f"it must hold {', '.join(wanted)}; it holds {', '.join(sorted(header))[:200]}")
    sizes = {"1": 1, "3": 3, "v": 3 * PATCH**2, "p": PATCHES**2, "d": checkpoint.settings.hidden}
    for name, (dtype, letters) in wanted.items():
        found, shape = header[name]
        fits = len(shape) == len(letters) and 0 not in shape
        if not fits or found != dtype or any(sizes.setdefault(x, n) != n for x, n in zip(letters, shape, strict=True)):
            spelled = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
            raise _refused(f"{name} must be {dtype} [{spelled}], it is {found} {list(shape)}")
    longest = min(checkpoint.settings.max_positions, MOST)
    if "ids" in wanted and not LEAST <= sizes["s"] <= longest:
        raise _refused(f"ids must be {LEAST} to {longest:,} tokens, there are {sizes['s']:,}")


def _check_values(golden: dict[str, Array], checkpoint: Checkpoint) -> None:
    settings = checkpoint.settings
    below = {"ids": settings.vocab, "image.input_ids": embedding_rows(checkpoint)}
    below |= {"preprocess.image_ids": embedding_rows(checkpoint)}
    if "preprocess.rows" in golden:
        below["preprocess.rows"] = golden["preprocess.image_masks"].size
    if "image.rows" in golden:
        below["image.rows"] = golden["image.input_ids"].shape[1]
    for name, limit in below.items():
        if name in golden and not (golden[name].min() >= 0 and golden[name].max() < limit):
            least, most = int(golden[name].min()), int(golden[name].max())
            raise _refused(f"{name} must be from 0 to {limit - 1:,}, they are from {least:,} to {most:,}")
    for name, values in golden.items():
        if not np.isfinite(values).all():
            count = int((~np.isfinite(values)).sum())
            raise _refused(f"{name} must be finite, {count:,} of its {values.size:,} values are not")


def _refused(why: str) -> VerificationError:
    return VerificationError(f"{FILE}: {why}. It was changed after it was recorded: export the variant again.")
