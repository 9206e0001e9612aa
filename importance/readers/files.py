"""What `--data` names: a file, several, a pattern such as `val-*.parquet`, or a folder with the shards of one split."""

import glob
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from importance.readers.fields import short
from importance.samples import SamplesError

Data = str | PathLike[str] | Sequence[str | PathLike[str]]
_TOTAL = re.compile(r"-\d{1,6}-of-(\d{1,6})(?=\D|$)")
_SHARD = re.compile(r"[-_.]?\d{1,6}(-of-\d{1,6})?(-[0-9a-f]{8,})?$")


def data_files(given: Data) -> list[Path]:
    """The files in the order given, those of a pattern or a folder by name; raises SamplesError."""
    names = [given] if isinstance(given, str | PathLike) else list(given)
    found = [file for name in names for file in _files(Path(name))]
    if not found:
        raise SamplesError("samples must come from at least one file, got none. Give a .jsonl or .parquet file.")
    seen: dict[Path, Path] = {}
    for file in found:
        same = file.resolve()
        if same in seen:
            raise SamplesError(f"{file}: each file of samples counts once, it is given twice. Leave one of them out.")
        seen[same] = file
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return _shards(path)
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    found = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not found:
        raise SamplesError(f"{path}: a pattern must match at least 1 file, got 0. Check it.")
    return found


def _shards(folder: Path) -> list[Path]:
    """All tables of a folder, or else all `.jsonl`, if their names differ in a number only."""
    for end in (".parquet", ".jsonl"):
        found = sorted(
            path for path in folder.iterdir() if path.suffix.lower() == end and not path.name.startswith(".")
        )
        if not found:
            continue
        splits = sorted({_SHARD.sub("", path.stem) for path in found})
        if len(splits) > 1:
            raise SamplesError(
                f"{folder}: a folder must hold the files of one split, got {len(splits)}: {short(splits)}. Give those "
                f"of one, such as '{folder / splits[0]}*{end}'."
            )
        _check_complete(folder, found)
        return found
    raise SamplesError(f"{folder}: a folder of samples must hold .parquet or .jsonl files, it has 0. Check the path.")


def _check_complete(folder: Path, found: Sequence[Path]) -> None:
    """Refuse a folder whose files say that there are more of them, as a broken download leaves it."""
    totals = {int(match[1]) for path in found if (match := _TOTAL.search(path.stem))}
    if totals and totals != {len(found)}:
        raise SamplesError(
            f"{folder}: a folder must hold all files of its split, by their names {max(totals)}: it has {len(found)}. "
            "Get the others, or name the files that count."
        )
