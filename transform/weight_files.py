"""Which files of a directory hold the weights: the ones that transformers would load, and no others.

Names are confined to the directory: a shard elsewhere would be copied into a published variant.
"""

from collections.abc import Mapping
from pathlib import Path

from transform.architectures import shown
from transform.errors import CheckpointError
from transform.regular_file import open_regular
from transform.safetensors_header import Entry, read_header
from transform.strict_json import MAX_TABLE_BYTES, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_COMPARED = 4096  # bytes of each tensor; training moves all of one


def weight_files(directory: Path) -> tuple[dict[str, str] | None, tuple[str, ...]]:
    """(weight map of the index or None, weight file names), every file there.

    A single file goes before an index, as in transformers, unless both are whole and differ: then which one is meant
    can't be told, and CheckpointError names both.
    """
    single = (directory / SINGLE).is_file()
    if not (directory / INDEX).is_file():
        if single:
            return None, (SINGLE,)
        raise _nothing_found(directory)
    weight_map = read_index(directory)
    names = tuple(dict.fromkeys(weight_map.values()))
    missing = [name for name in names if not (directory / name).is_file()]
    if not single or SINGLE in names:
        if missing:
            raise CheckpointError(
                f"the {len(names)} weight files that {INDEX} names must be there, {len(missing)} missing: "
                f"{shown(missing[0])}{', …' if len(missing) > 1 else ''}. Download them again."
            )
        return weight_map, names
    if not missing and not _same_tensors(directory, names):
        raise CheckpointError(
            f"{directory}: weights must be there once, {SINGLE} and the {len(names)} files of {INDEX} hold different "
            f"ones, and transformers would load {SINGLE}. Remove the one that you don't mean."
        )
    return None, (SINGLE,)


def read_index(directory: Path) -> dict[str, str]:
    """The index's table of tensor names to file names, each of them a plain name."""
    weight_map = read_json(directory / INDEX, MAX_TABLE_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX}: must hold a weight_map of tensor names to files. Download it again.")
    for name in weight_map.values():
        if not isinstance(name, str) or not _is_plain(name):
            raise CheckpointError(
                f"{INDEX}: weight files must lie in the checkpoint's own directory, with names that end in "
                f".safetensors, got {shown(name)}. Move them there and correct the index."
            )
    return weight_map


def _is_plain(name: str) -> bool:
    short = len(name.encode()) <= 255
    return (
        short and name.endswith(".safetensors") and name.isprintable() and name[0] != "." and not set(name) & set("/\\")
    )


def _same_tensors(directory: Path, shards: tuple[str, ...]) -> bool:
    """Whether the single file and the shards agree, by their tables and by the first bytes of every tensor.

    What this doesn't see does no harm: the single file is used, which is the one that transformers loads.
    """
    alone = _table(directory, (SINGLE,))
    split = _table(directory, shards)
    if {n: (e.dtype, e.shape) for n, (_, e) in alone.items()} != {n: (e.dtype, e.shape) for n, (_, e) in split.items()}:
        return False
    return all(_first_bytes(*alone[name]) == _first_bytes(*split[name]) for name in alone)


def _table(directory: Path, files: tuple[str, ...]) -> Mapping[str, tuple[Path, Entry]]:
    return {entry.name: (directory / file, entry) for file in files for entry in read_header(directory / file)}


def _first_bytes(path: Path, entry: Entry) -> bytes:
    with open_regular(path) as file:
        file.seek(entry.start)
        return file.read(min(entry.nbytes, _COMPARED))


def _nothing_found(directory: Path) -> CheckpointError:
    """No weights by the usual names: what is there instead, and what to do about it."""
    names = sorted(path.name for path in directory.iterdir())
    dangling = [name for name in (SINGLE, INDEX) if (directory / name).is_symlink()]
    if dangling:
        return CheckpointError(
            f"{directory}: weights must be there, {dangling[0]} is a link to nothing. Download the checkpoint again."
        )
    adapters = [name for name in names if name.startswith("adapter_model.")]
    if adapters:
        return CheckpointError(
            f"{directory}: weights must be a whole model's, {adapters[0]} is an adapter. Merge it into its model first "
            "(peft's merge_and_unload)."
        )
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        found = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        way_out = f"Download {INDEX} too" if len(others) > 1 else f"Call it {SINGLE} if it holds the whole model"
        return CheckpointError(
            f"{directory}: weights are {SINGLE} or what {INDEX} names, there is neither but {len(others)} other "
            f"{'file' if len(others) == 1 else 'files'}: {found}. {way_out}."
        )
    pickles = [name for name in names if name.endswith(".bin")] + [name for name in names if Path(name).match("*.pt*")]
    if pickles:
        return CheckpointError(
            f"{directory}: weights must be safetensors, found only pickles ({', '.join(pickles[:3])}), which run code "
            "when opened. Convert them with transformers' save_pretrained first."
        )
    refuse_gguf(directory)
    return CheckpointError(f"{directory}: no {SINGLE} and no {INDEX}. Give the directory of a checkpoint.")


def refuse_gguf(directory: Path) -> None:
    """Raise CheckpointError where the weights are llama.cpp's, which often come without a config.json."""
    found = sorted(path.name for path in directory.iterdir() if path.suffix.lower() == ".gguf")
    if found:
        raise CheckpointError(
            f"{directory}: weights must be safetensors, found only GGUF ({', '.join(found[:3])}), llama.cpp's own "
            "format. Use the checkpoint that it was made of."
        )
