"""Any picture -> uint8 RGB, upright, or an `ImageError` that says why not.

EXIF orientation is applied. Alpha is dropped, not composited: that is what the model was trained on (a transparent
pixel keeps its stored colour). 16-bit greys are scaled to 8 bits. Animations give their first frame.
"""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .png_texts import without_texts

ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray
STRIP = 256  # rows converted at a time: all of a large photo at once would take gigabytes


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
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            "An image must be a path, a PIL image or an array, uint8 [height, width, 3], got "
            f"{type(source).__name__}. Convert it to one of these."
        )
    return _read(Path(source), str(Path(source)))


def decode_image(data: bytes) -> np.ndarray:
    """The bytes of a picture file -> uint8 [h, w, 3], C order; raises ImageError."""
    return _read(data, f"a file of {len(data):,} bytes")


def _read(source: Path | bytes, name: str) -> np.ndarray:
    if isinstance(source, Path) and source.exists() and not source.is_file():  # a pipe would keep us waiting
        raise ImageError(f"The image must be a regular, readable file: {name} is a folder, pipe or device.")
    try:
        return _decoded(io.BytesIO(source) if isinstance(source, bytes) else source, name)
    except ImageError as e:
        if not isinstance(e.__cause__, ValueError):  # how pillow refuses a PNG over its texts
            raise
        shorter = without_texts(source if isinstance(source, bytes) else source.read_bytes())
        if shorter is None:
            raise
        return _decoded(io.BytesIO(shorter), name)


def _decoded(file: Path | io.BytesIO, name: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(file)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as e:
        raise ImageError(
            f"An image must have at most {Image.MAX_IMAGE_PIXELS} pixels: {name}: {e}. Scale it down."
        ) from e
    except UnidentifiedImageError as e:
        raise ImageError(f"The image must be a picture that pillow can read: {name} is none. Convert it to PNG.") from e
    except Exception as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise ImageError(f"The image must be a readable file: {name}: {e.strerror or e}. Check the path.") from e
        raise _damaged(name, e) from e
    with opened:
        return _pixels(opened, name)


def _damaged(name: str, reason: Exception) -> ImageError:
    """Decoders of broken files raise about anything: OSError, SyntaxError, RuntimeError, struct.error, …"""
    told = " ".join(str(reason).split())[:200] or type(reason).__name__
    return ImageError(f"The image must be complete and intact: {name}: {told}. Get it again, or convert it.")


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    try:
        image.load()
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        rgb = _rgb(ImageOps.exif_transpose(image) if turned else image, name)
    except ImageError:
        raise
    except Exception as e:
        raise _damaged(name, e) from e
    if 0 in rgb.shape:
        raise ImageError(f"An image must have at least 1 pixel a side: {name} has {rgb.shape[1]}×{rgb.shape[0]}.")
    return rgb


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.height <= STRIP:
        return _strip(image, name)
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP):
        bottom = min(top + STRIP, image.height)
        rgb[top:bottom] = _strip(image.crop((0, top, image.width, bottom)), name)
    return rgb


def _strip(image: Image.Image, name: str) -> np.ndarray:
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
