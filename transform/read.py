"""A directory becomes a `Checkpoint`: config, index and headers, read and checked. No tensor is loaded."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from transform.architectures import architecture_of, lookup
from transform.checkpoint import PACKED, Checkpoint, Tensor, check_tensors
from transform.errors import CheckpointError
from transform.fused_experts import split_fused
from transform.quantised import refuse_quantised
from transform.safetensors_header import read_header
from transform.side_files import side_files
from transform.strict_json import read_json
from transform.weight_files import weight_files


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read and check config, index and headers; raises CheckpointError with the rule that was broken."""
    try:
        there = directory.is_dir()
    except OSError as error:  # a name that is too long, or in a directory that can't be entered
        raise CheckpointError(f"{directory}: cannot be read ({error.strerror}). Check the path.") from error
    if not there:
        raise CheckpointError(f"{directory}: not a directory. Give the directory of a checkpoint.")
    if not (directory / "config.json").exists() and (directory / "snapshots").is_dir():
        raise CheckpointError(
            f"{directory}: a checkpoint must lie in the directory itself, this is a folder of the hub's cache. "
            "Give the folder below snapshots/."
        )
    config = read_json(directory / "config.json")
    architecture_of(config)  # before the weights: an unknown family is the more useful message
    if lookup(config, "quantization_config.quant_method") == PACKED:
        from transform.packed import read_packed  # it builds on this file

        return read_packed(directory, config)
    refuse_quantised(directory, config, architecture_of(config).quantised)
    weight_map, files = weight_files(directory)
    architecture = architecture_of(config)
    tensors: dict[str, Tensor] = {}
    for file in files:
        entries = {entry.name: entry for entry in read_header(directory / file)}
        if weight_map is not None:
            _check_index(weight_map, entries, file)
        kept = {name: entry for name, entry in entries.items() if not name.endswith(architecture.dropped)}
        for entry in split_fused(kept, architecture).values():
            tensors[entry.name] = Tensor(
                entry.name, entry.dtype, entry.shape, directory / file, entry.start, entry.nbytes, entry.dtype
            )
    checkpoint = Checkpoint(directory, config, tensors, side_files(directory))
    check_tensors(checkpoint)
    return checkpoint


def _check_index(weight_map: Mapping[str, str], entries: Iterable[str], file: str) -> None:
    for name in entries:
        if weight_map.get(name) != file:
            raise CheckpointError(
                f"{file}: holds {name!r}, which the index puts into {weight_map.get(name)!r}. "
                "Index and files belong to different checkpoints: download both again."
            )
