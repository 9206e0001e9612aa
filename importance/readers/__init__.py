"""Files of samples, one kind per file: `read(path, images, annotations, reading)` yields (place, sample) in the file's
order, and tells `reading` which columns it took.

Each is imported when its kind of file is met: only tables need pyarrow. A sample whose id is empty gets its number.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from importance.readers.columns import Reading
from importance.readers.images import Images
from importance.samples import Sample

Read = Callable[[Path, Images, Path | None, Reading], Iterator[tuple[str, Sample]]]


@dataclass(frozen=True)
class Reader:
    """A kind of file. form: what to write into an empty one. shared_ids: several questions may have one id, as those of
    MME about one picture do."""

    read: Read
    form: str
    shared_ids: bool


_MODULES = {".json": "vqav2", ".parquet": "parquet"}


def reader_of(path: Path) -> Reader:
    """By the end of the name; `.jsonl` for all that are not known."""
    name = _MODULES.get(path.suffix.lower(), "jsonl")
    module = import_module(f"importance.readers.{name}")
    return Reader(module.read, module.FORM, name == "parquet")
