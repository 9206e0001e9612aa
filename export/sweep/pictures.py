"""A few of the data's pictures, kept small beside the sweep: the report draws tilings on them.

`pictures.json` names each picture and its size as the user has it, for the tiling depends on that; `pictures/` has them
as JPEG of at most 512 pixels a side.
"""

import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image

from importance.atomic import make_folder, write_atomically
from importance.samples import EncodedImage, Picture, Sample
from transform.errors import VerificationError
from transform.molmoe.pictures import ImageError, ImageInput, decode_image, open_image
from transform.strict_json import read_json

FILE, FOLDER = "pictures.json", "pictures"
SIDE, QUALITY = 512, 80
LOOKED_AT = 32
JPEG = b"\xff\xd8\xff"
DIFFERENT = 1.1  # ratio of two aspects
_WAY_OUT = f"Remove {FILE}, and the report comes without them, or run the sweep again."


@dataclass(frozen=True)
class Kept:
    """A picture: the user's name of it, its size there in pixels, and itself as JPEG, smaller."""

    name: str
    width: int
    height: int
    jpeg: bytes


def shrink(name: str, picture: ImageInput) -> Kept:
    """A picture that pillow reads, small; raises ImageError."""
    return _shrunk(name, open_image(picture))


def keep_pictures(samples: Iterable[Sample], directory: Path, most: int = 4) -> None:
    """Write the first different pictures of the samples into `directory`, those of different shapes first.

    Raises ImageError for one that can't be read and WriteError where nothing can be written; without pictures nothing
    is.
    """
    chosen = _choose(_different(samples), most)
    if not chosen:
        return
    make_folder(directory / FOLDER)
    entries = []
    for n, kept in enumerate(chosen):
        file = f"{n}.jpg"
        write_atomically(directory / FOLDER / file, kept.jpeg, force=True)
        entries.append({"file": file, **{k: v for k, v in asdict(kept).items() if k != "jpeg"}})
    write_atomically(directory / FILE, json.dumps({"schema": 1, "pictures": entries}, indent=1) + "\n", force=True)


def read_pictures(directory: Path) -> tuple[Kept, ...]:
    """The pictures kept in `directory`, none where there are none; VerificationError where they are damaged."""
    if not (directory / FILE).is_file():
        return ()
    record = read_json(directory / FILE, way_out=_WAY_OUT)
    entries = record.get("pictures")
    if record.get("schema") != 1 or not isinstance(entries, list):
        raise _damaged(directory, "its list of pictures")
    return tuple(_read(directory, n, entry) for n, entry in enumerate(entries))


def _read(directory: Path, n: int, entry: object) -> Kept:
    if not isinstance(entry, dict) or entry.get("file") != f"{n}.jpg":
        raise _damaged(directory, f"picture {n}")
    name, width, height = (entry.get(key) for key in ("name", "width", "height"))
    if not (isinstance(name, str) and type(width) is int and type(height) is int and min(width, height) > 0):
        raise _damaged(directory, f"picture {n}")
    try:
        jpeg = (directory / FOLDER / f"{n}.jpg").read_bytes()
        whole = jpeg.startswith(JPEG) and max(decode_image(jpeg).shape[:2]) <= SIDE
    except (OSError, ImageError) as error:
        raise _damaged(directory, f"picture {n}") from error
    if not whole:
        raise _damaged(directory, f"picture {n}")
    return Kept(name, width, height, jpeg)


def _damaged(directory: Path, what: str) -> VerificationError:
    return VerificationError(f"{directory / FILE} must describe the pictures beside it, {what} is damaged. {_WAY_OUT}")


def _different(samples: Iterable[Sample]) -> Iterable[Kept]:
    """The pictures in the order of the samples, each once, at most LOOKED_AT."""
    seen: set[object] = set()
    for sample in samples:
        for picture in sample.images:
            mark = _mark(picture)
            if mark not in seen:
                if len(seen) == LOOKED_AT:
                    return
                seen.add(mark)
                name = Path(picture).name if isinstance(picture, str | PathLike) else f"of {sample.id}"
                yield _shrunk(name, picture.open() if isinstance(picture, EncodedImage) else open_image(picture))


def _mark(picture: Picture) -> object:
    if isinstance(picture, EncodedImage):
        return picture.data
    return str(picture) if isinstance(picture, str | PathLike) else id(picture)


def _choose(pictures: Iterable[Kept], most: int) -> list[Kept]:
    shapes: list[Kept] = []
    alike: list[Kept] = []
    for one in pictures:
        aspect = one.width / one.height
        near = any(1 / DIFFERENT < aspect * k.height / k.width < DIFFERENT for k in shapes)
        (alike if near else shapes).append(one)
        if len(shapes) >= most:
            break
    return (shapes + alike)[:most]


def _shrunk(name: str, pixels: np.ndarray) -> Kept:
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=QUALITY, optimize=True)
    return Kept(name, width, height, buffer.getvalue())
