"""A directory becomes a `Checkpoint`: config, index and headers, read and checked. No tensor is loaded."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from transform.architectures import architecture_of, lookup, shown
from transform.checkpoint import PACKED, Checkpoint, Tensor, check_tensors
from transform.errors import CheckpointError
from transform.fused_experts import split_fused
from transform.safetensors_header import read_header
from transform.side_files import side_files
from transform.strict_json import read_json
from transform.weight_files import weight_files

# Which release that usually is, by the method that the config names.
_RELEASES = {
    "fp8": ", the release in bfloat16", "fbgemm_fp8": ", the release in bfloat16",
    "mxfp4": ", a release in bfloat16", "gptq": ", the release without GPTQ in its name",
    "awq": ", the release without AWQ in its name", "compressed-tensors": ", the release that was compressed",
    "bitsandbytes": ", the release without 4bit or 8bit in its name",
}  # fmt: skip


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
    refuse_quantised(config, architecture_of(config).quantised)
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


def refuse_quantised(config: Mapping[str, object], passing: Sequence[str] = ()) -> None:
    """Raise CheckpointError where a config says that another tool has quantised the weights, by a method that isn't
    among those `passing`: the family's, whose bytes can move as they are.

    Loaders go by that, whatever the files hold: a variant with such a config couldn't be loaded.
    """
    for key in ("quantization_config", "compression_config"):
        about = config.get(key)
        if about is not None:
            method = about.get("quant_method") if isinstance(about, Mapping) else about
            if method in passing:
                continue
            raise CheckpointError(
                f"weights must be plain floating point numbers, {key} in config.json says that they are quantised "
                f"({'method' if method else 'without a method'}{f' {shown(method)}' if method else ''}). Use the "
                f"checkpoint it was made of{_RELEASES.get(str(method), '')}; if the weights are plain after all, "
                f"remove {key} from config.json."
            )
