"""Pictures as samples name them: a path below one folder and nowhere else, or the bytes of a picture file.

Each name is looked up once and equal bytes are held once, for samples share pictures.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from importance.readers.fields import is_text, short
from importance.samples import EncodedImage, Picture, SamplesError

MAX_PICTURE = 100_000_000  # bytes of an encoded picture
_ENDS = (".jpg", ".png", ".jpeg", ".webp")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)


class Images:
    """Finds pictures below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder.resolve()
        self.known: dict[str, Path] = {}
        self.held: dict[bytes, EncodedImage] = {}

    def find(self, value: object, where: str) -> tuple[Picture, ...]:
        """A path, the bytes of a file, an object with `path` or `bytes`, null, or a list of at most one of them."""
        given = value if isinstance(value, list) else [] if value is None else [value]
        if len(given) > 1:
            raise SamplesError(
                f"{where}: image must be one path, null, or a list of at most one path, got {short(value)}. "
                "Several images in one prompt were never trained."
            )
        return tuple(self._one(one, where) for one in given)

    def named(self, value: object, column: str, where: str) -> tuple[Picture, ...]:
        """The picture whose file has this id as its name, as GQA and COCO name theirs."""
        if value is None:
            return ()
        padded = [f"{value:012d}"] if isinstance(value, int) else []
        names = [f"{stem}{end}" for stem in (str(value), *padded) for end in _ENDS]
        hint = f"{column} names pictures that are kept elsewhere: give the folder that holds them, as --images."
        return (self.first(names, where, hint),)

    def first(self, names: Sequence[str], where: str, hint: str = "Check the path.") -> Path:
        """The first of these names that is a file; raises SamplesError where none is."""
        for name in names:
            if name in self.known:
                return self.known[name]
            path = self.folder / name
            try:
                # the resolved path also sees where symbolic links lead
                inside = ".." not in PurePath(name).parts and path.resolve().is_relative_to(self.root)
                is_file = inside and path.is_file()
            except (OSError, ValueError, RuntimeError):  # no name for this file system, or links in a circle
                inside, is_file = True, False
            if PurePath(name).is_absolute() or not inside:
                raise SamplesError(
                    f"{where}: images must lie below the folder of the file, or the one given for images, got "
                    f"{short(name)}. Copy them there and give a path without .. such as images/x.png."
                )
            if is_file:
                self.known[name] = path
                return path
        if _URL.match(names[0]):
            hint = "Addresses are not fetched and data is not unpacked: save the picture, and give its path."
        raise SamplesError(f"{where}: the image must be a file, {' or '.join(map(short, names[:2]))} is none. {hint}")

    def _one(self, value: object, where: str) -> Picture:
        if isinstance(value, bytes):
            return self._hold(value, where)
        if isinstance(value, dict):
            if value.get("bytes") is not None:
                return self._hold(value["bytes"], where)
            if value.get("path") is None:
                given = ", ".join(f"{short(key)} (null)" if value[key] is None else short(key) for key in value)
                raise SamplesError(
                    f"{where}: an image must have the key bytes or path, and one of them not null, got {given or 'no'} "
                    "keys. Rename them, or write null for a sample without a picture."
                )
            value = value["path"]
        if not is_text(value):
            raise SamplesError(
                f"{where}: image must be one path or null, got {short(value)}. A sample without a picture says null."
            )
        return self.first([value], where)

    def _hold(self, data: object, where: str) -> EncodedImage:
        if not isinstance(data, bytes) or not 0 < len(data) <= MAX_PICTURE:
            size = f"{len(data):,}" if isinstance(data, bytes) else f"a {type(data).__name__}"
            raise SamplesError(
                f"{where}: an image must have 1 to {MAX_PICTURE:,} bytes, got {size}. Encode it as PNG or JPEG."
            )
        return self.held.setdefault(data, EncodedImage(data))
