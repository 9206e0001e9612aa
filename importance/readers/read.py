"""Read samples: files of any kind that a reader knows, their ids made unique, their pictures there."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from importance.readers import reader_of
from importance.readers.columns import Reading
from importance.readers.files import data_files
from importance.readers.images import Images
from importance.samples import Sample, SamplesError
from transform.progress import Say


def read_samples(
    file: str | PathLike[str] | Sequence[str | PathLike[str]],
    limit: int | None = None,
    *,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    say: Say | None = None,
) -> list[Sample]:
    """The samples of a file in its order, at most the first `limit`; raises SamplesError with file and place.

    By the name's end: `.json` is a VQAv2 questions file, whose answers are in the file `annotations`; `.parquet` a
    table; anything else `.jsonl`, the canonical form. Several files, a pattern or a folder are the shards of one split.
    Every image that is named must be there, inside the folder `images`, else inside the file's own. What lies behind
    the limit is not read. `say` gets one line about columns that have other names or were not read.
    """

    if limit is not None and limit < 1:
        raise SamplesError(f"the limit must be at least 1 sample, got {limit}. Leave it out to take them all.")
    if images is not None and not Path(images).is_dir():
        raise SamplesError(f"the images must be in a directory, {images} is none. Check the path.")
    files = data_files(file)
    if annotations is not None and len(files) > 1:
        raise SamplesError(f"annotations belong to one questions file, got {len(files)} files. Give one of them.")
    reading, found, known = Reading(), list[Sample](), _Ids()
    for path in files:
        reader = reader_of(path)
        before = len(found)
        folder = Images(Path(images) if images is not None else path.parent)
        for place, sample in reader.read(path, folder, None if annotations is None else Path(annotations), reading):
            numbered = sample if sample.id else replace(sample, id=str(len(found) + 1))
            found.append(known.own(numbered, path, place, reader.shared_ids))
            if len(found) == limit:
                break
        if len(found) == before:
            raise SamplesError(f"{path.name}: at least one sample is needed, the file has 0. {reader.form}")
        if len(found) == limit:
            break
    if say is not None and (note := reading.note()):
        say(f"{files[0].name}: {note}")
    return found


class _Ids:
    """Ids occur once. Where questions may share one, all but the first get a number behind it."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, set[str]]] = {}

    def own(self, sample: Sample, path: Path, place: str, shared: bool) -> Sample:
        """The sample under an id of its own; raises SamplesError."""
        if sample.id not in self.known:
            self.known[sample.id] = f"{path.name}, {place}", {sample.prompt}
            return sample
        first, prompts = self.known[sample.id]
        if not shared or sample.prompt in prompts:
            raise SamplesError(
                f"{path.name}, {place}: ids must be unique, {sample.id!r} is that of {first}. Rename one of them."
            )
        prompts.add(sample.prompt)
        return self.own(replace(sample, id=f"{sample.id}#{len(prompts)}"), path, place, shared)
