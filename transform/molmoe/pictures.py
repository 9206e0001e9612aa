"""Any picture -> uint8 RGB, upright, or an `ImageError` that says why not.

EXIF orientation is applied. Alpha is dropped, not composited: that is what the model was trained on (a transparent
pixel keeps its stored colour). 16-bit greys are scaled to 8 bits. Animations give their first frame.
"""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray


class ImageError(ValueError):
    """A picture that can't be read, or can't be brought into the model's crops."""


def open_image(source: ImageInput) -> np.ndarray:
    """A path, a PIL image or an array [h, w, 3] uint8 -> uint8 [h, w, 3], C order."""
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise ImageError(
                f"An image array must be uint8 [height, width, 3] with at least 1 pixel, got {source.dtype} "
                f"{list(source.shape)}. Convert it, or pass a PIL image."
            )
        return np.ascontiguousarray(source)
    if isinstance(source, Image.Image):
        return _pixels(source, "the image")
    name = str(Path(source))
    try:
        if Path(source).exists() and not Path(source).is_file():  # a pipe would keep us waiting
            raise ImageError(f"The image must be a regular, readable file: {name} is a folder, pipe or device.")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(source)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as e:
        raise ImageError(
            f"An image must have at most {Image.MAX_IMAGE_PIXELS} pixels: {name}: {e}. Scale it down."
        ) from e
    except UnidentifiedImageError as e:
        raise ImageError(f"The image must be a picture that pillow can read: {name} is none. Convert it to PNG.") from e
    except OSError as e:
        raise ImageError(f"The image must be a readable file: {name}: {e.strerror or e}. Check the path.") from e
    with opened:
        return _pixels(opened, name)


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        rgb = _rgb(upright, name)
    except ImageError:
        raise
    except Exception as e:  # decoders of broken files raise about anything: OSError, SyntaxError, struct.error, ...
        raise ImageError(f"The image must be complete and intact: {name}: {e}. Get it again, or convert it.") from e
    if 0 in rgb.shape:
        raise ImageError(f"An image must have at least 1 pixel a side: {name} has {rgb.shape[1]}×{rgb.shape[0]}.")
    return rgb


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ImageError(
                f"Greys must be within 16 bits (0 to 65535): {name} has {values.min()} to {values.max()}. Scale them."
            )
        return np.repeat(((values + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ImageError(f"Pixels must be whole numbers, for floats have no known white: {name}. Convert it to 8 bits.")
    if image.mode == "La":
        image = image.convert("LA")  # pillow knows no direct way to RGB
    elif image.mode in ("P", "PA", "RGBa"):
        image = image.convert("RGBA")  # straight to RGB, pillow warns about transparent palettes
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))
