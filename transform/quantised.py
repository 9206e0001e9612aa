"""Weights that another tool has quantised, known by what it leaves in a directory: refused by name, with the way out.

Loaders go by config.json, whatever the files hold: a variant with such a config couldn't be loaded. Some methods leave
a file of their own instead.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from transform.architectures import shown
from transform.errors import CheckpointError

KEYS = ("quantization_config", "compression_config", "quantization")  # the last is MLX's
FILES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}
# Keys by which a config without the method's name tells it.
_TELLING = {"load_in_4bit": "bitsandbytes", "load_in_8bit": "bitsandbytes", "quant_algo": "modelopt"}
# Which release to take instead, by the method; of any other the one that it was made of.
_RELEASES = {
    "fp8": ", the release in bfloat16", "fbgemm_fp8": ", the release in bfloat16",
    "mxfp4": ", a release in bfloat16", "gptq": ", the release without GPTQ in its name",
    "awq": ", the release without AWQ in its name", "compressed-tensors": ", the release that was compressed",
    "bitsandbytes": ", the release without 4bit or 8bit in its name", "modelopt": ", the release without NVFP4 or FP8 "
    "in its name", "mlx": ", the release without MLX in its name",
}  # fmt: skip


def refuse_quantised(directory: Path, config: Mapping[str, object], passing: Sequence[str] = ()) -> None:
    """Raise CheckpointError where config or directory say that another tool has quantised the weights, by a method that
    isn't among those `passing`: the family's, whose bytes can move as they are."""
    for where, about in _said(config):
        method = method_of(where, about)
        if method in passing and where == KEYS[0]:
            continue
        named = f"method {shown(method)}" if method else "without a method"
        raise CheckpointError(
            f"weights must be plain floating point numbers, {where} in config.json says that they are quantised "
            f"({named}). Use the checkpoint it was made of{_RELEASES.get(str(method), '')}; if the weights are plain "
            f"after all, remove {where} from config.json."
        )
    for name, method in FILES.items():
        if (directory / name).is_file() and method not in passing:
            raise CheckpointError(
                f"weights must be plain floating point numbers, {name} beside them says that they are quantised "
                f"(method {shown(method)}). Use the checkpoint it was made of{_RELEASES[method]}; if the weights are "
                f"plain after all, remove {name}."
            )


def method_of(where: str, about: object) -> object:
    """What a config calls its method, or what its keys tell; None where nothing does."""
    if not isinstance(about, Mapping):
        return about
    if named := about.get("quant_method"):
        return named
    if where.rpartition(".")[2] == "quantization":
        return "mlx"
    return next((method for key, method in _TELLING.items() if about.get(key)), None)


def _said(config: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """(dotted key, what stands there) of a config and of the decoder's or the tower's within it."""
    parts = {f"{key}.": value for key, value in config.items() if key.endswith("_config") and key not in KEYS}
    for where, part in ({"": config} | parts).items():
        if isinstance(part, Mapping):
            yield from ((f"{where}{key}", part[key]) for key in KEYS if part.get(key) is not None)
