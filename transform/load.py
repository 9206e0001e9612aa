"""A checkpoint directory -> a model in memory, with every tensor in its place or an error.

Without running code from the directory: by the class that the family's data file names, ours or transformers'.
Quantised weights are loaded as the float32 values they stand for.
"""

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from transformers import CONFIG_MAPPING, GenerationConfig

from transform.architectures import architecture_named, beyond_the_model, imported, lookup
from transform.architectures.vocabulary import ONE_TABLE, depth_of
from transform.arrays import Array
from transform.checkpoint import OF_A_MACHINE, PACKED, Checkpoint
from transform.depth import view_blocks, without_blocks
from transform.dtype import cast, stored_dtype
from transform.errors import CheckpointError, KnobcastError
from transform.packed import dequantise, fake_quantised
from transform.packed_layout import Packing
from transform.read import read_checkpoint
from transform.strict_json import MAX_TABLE_BYTES, Record, read_json, with_floats
from transform.weight_files import INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils.quantization_config import QuantizationConfigMixin

_TAKE_IN_TURN = "HF_DEACTIVATE_ASYNC_LOAD"  # transformers reads it at every load
ALIGNMENT = 64  # bytes; torch's own allocations have it
TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
OTHER_DTYPES = {"U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool}


@dataclass(frozen=True)
class LoadReport:
    """Which tensors did not go where they belong; names as the model has them."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether every tensor found its place and every place its tensor."""
        return not (self.missing or self.unexpected or self.mismatched)

    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        return {name: len(getattr(self, name)) for name in ("missing", "unexpected", "mismatched")}

    def insist(self, what: str) -> None:
        """Raise CheckpointError unless clean."""
        found = ", ".join(
            f"{count} {kind} ({getattr(self, kind)[0]!r}, …)" for kind, count in self.counts().items() if count
        )
        if found:
            raise CheckpointError(
                f"{what}: every tensor of the checkpoint and of the model must match one of the other: {found}. "
                "Config and weights must be of one checkpoint."
            )

    def within(self, config: Mapping[str, object]) -> "LoadReport":
        """Without tensors that the family knows to lie beyond the model, of blocks that predict further tokens."""
        family = architecture_named(config.get("model_type"))
        beyond = beyond_the_model(family, depth_of(family.text_of(config), family.depth_key))
        return replace(self, unexpected=tuple(name for name in self.unexpected if not beyond(name)))

    @classmethod
    def of(cls, info: Mapping[str, Iterable[str | tuple[str, ...]]]) -> "LoadReport":
        """From transformers' loading info."""
        # mismatched ones come with their two shapes
        mismatched = (name if isinstance(name, str) else str(name[0]) for name in info["mismatched_keys"])
        missing, unexpected = (tuple(sorted(map(str, info[f"{kind}_keys"]))) for kind in ("missing", "unexpected"))
        return cls(missing, unexpected, tuple(sorted(mismatched)))


def load_with_report(directory: Path, dtype: str = "float32", **kwargs: object) -> "tuple[PreTrainedModel, LoadReport]":
    """The model in eval mode, and the report; `kwargs` go to `from_pretrained` (`attn_implementation`, ...)."""
    config = read_json(directory / "config.json")
    if lookup(config, "quantization_config.quant_method") == PACKED or _read_otherwise(directory, config):
        return _load_by_table(directory, dtype, kwargs)
    kind = model_class(config)
    if method := _passing(config):
        kwargs |= {"quantization_config": _as_values(method)}
    with building(str(directory)):
        model, info = kind.from_pretrained(
            str(directory),
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            **kwargs,
        )
    return align(model).eval(), LoadReport.of(info).within(config)


@contextmanager
def building(what: str) -> Iterator[None]:
    """transformers has no exception of its own for a config it can't build: all of them become CheckpointError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, KnobcastError | MemoryError):
            raise
        reason = " ".join((str(error).strip() or type(error).__name__).split())[:300].rstrip(".")
        raise CheckpointError(
            f"{what}: the model that config.json describes can't be built: {reason}. Restore the original config.json, "
            "or correct what is named here."
        ) from error


def plain_config(config: Mapping[str, object]) -> Record:
    """A config for weights given as floats, without what it says about the machine that it was saved on."""
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", *OF_A_MACHINE)}
    return dict(with_floats(plain))


def check_buildable(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where transformers refuses the config: before any work, on one block without memory."""
    family = checkpoint.architecture
    one_table = family.text_of(checkpoint.config).get(ONE_TABLE)  # of all blocks: none can be looked at by itself
    config = checkpoint.config if one_table else view_blocks(checkpoint, (0,)).config
    kind = model_class(config)
    with building(str(checkpoint.path)), torch.device("meta"):
        kind(kind.config_class.from_dict(plain_config(config)))


def align(model: "PreTrainedModel") -> "PreTrainedModel":
    """Copy parameters that are mapped from odd places of a file to aligned memory.

    CPU kernels round differently at other alignments, so only then are equal weights equal to the last bit.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()
    return model


def load_model(directory: Path, dtype: str = "float32", **kwargs: object) -> "PreTrainedModel":
    """The model in eval mode; raises CheckpointError unless every tensor found its place."""
    model, report = load_with_report(directory, dtype, **kwargs)
    report.insist(str(directory))
    return model


def load_view(
    view: Checkpoint,
    dtype: str = "float32",
    packed: Packing | None = None,
    pictures: bool = True,
    blocks: bool = True,
) -> "tuple[PreTrainedModel, LoadReport]":
    """A model in float32 from a checkpoint value, its tensors mapped from wherever they lie.

    `dtype` rounds first; `packed` then gives what is quantised in such a variant the values it has there, to the last
    bit. Without `pictures` nothing is read of what only they pass, and the model has no place for them; without
    `blocks` it embeds, and has norm and head.

    Tensors of one 16-bit type become float32 when the model is whole, one parameter at a time: where experts are fused,
    lists of their matrices in float32 would take as much memory as the model itself.
    """
    quantised = {} if packed is None else dict(fake_quantised(cast(view, dtype), packed))  # of all: they lie in stacks
    if not blocks:
        view = without_blocks(view)
    given = stored_dtype(view) if dtype == "float32" else dtype
    tensors = _mapped(view)
    if packed is not None:
        if dtype != "float32":
            tensors = {name: _Later(partial(_rounded, values, dtype)) for name, values in tensors.items()}
        tensors |= {name: _Later(make) for name, make in quantised.items() if name in tensors}
        given = "float32"  # another one would round the quantised values
    images = None if pictures else view.architecture.images
    if images:
        hollow = torch.zeros((), dtype=getattr(torch, given))  # in the place of all values: no place is left empty
        unread = [name for name in tensors if name.startswith(f"model.{images.module}.")]
        tensors |= {name: hollow.expand(view.tensors[name].shape) for name in unread}
    model, report = _from_tensors(view, tensors, given, {})
    report.insist(str(view.path))
    if images:
        setattr(model.model, images.module, None)
    return align(model.float()).eval(), report


def _read_otherwise(directory: Path, config: Mapping[str, object]) -> bool:
    """Whether transformers, given the directory, would read more than config and weights, or couldn't read these."""
    adapter = (directory / "adapter_config.json").exists()  # peft would add it to a model that it is merged into
    no_metadata = (directory / INDEX).is_file() and "metadata" not in read_json(directory / INDEX, MAX_TABLE_BYTES)
    return adapter or no_metadata or any(key in config for key in OF_A_MACHINE)


def _load_by_table(directory: Path, dtype: str, kwargs: Mapping[str, object]) -> "tuple[PreTrainedModel, LoadReport]":
    view = read_checkpoint(directory)
    model, report = _from_tensors(view, _mapped(view), dtype, kwargs)
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    return align(model).eval(), report


class _Later:
    """A tensor computed when the model takes it. transformers asks for `[...]`, as it does of slices of files."""

    def __init__(self, make: Callable[[], Array | torch.Tensor]) -> None:
        self._make = make

    def __getitem__(self, _: object) -> torch.Tensor:
        return torch.as_tensor(self._make())


def _rounded(values: "torch.Tensor | _Later", dtype: str) -> torch.Tensor:
    return values[...].to(getattr(torch, dtype)).float()


def _mapped(view: Checkpoint) -> dict[str, torch.Tensor | _Later]:
    """Every tensor in its file, or to be dequantised."""
    tensors: dict[str, torch.Tensor | _Later] = {}
    maps: dict[Path, mmap.mmap] = {}
    for name, tensor in view.tensors.items():
        if tensor.pack is not None:
            tensors[name] = _Later(partial(dequantise, tensor))
            continue
        if tensor.file not in maps:
            with tensor.file.open("rb") as file:
                maps[tensor.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        kind = (TORCH_DTYPES | OTHER_DTYPES)[tensor.stored]
        flat = torch.frombuffer(
            maps[tensor.file], dtype=kind, count=tensor.nbytes // kind.itemsize, offset=tensor.start
        )
        tensors[name] = flat.view(tensor.shape)
    return tensors


def _from_tensors(
    view: Checkpoint, tensors: dict[str, torch.Tensor | _Later], dtype: str, kwargs: Mapping[str, object]
) -> "tuple[PreTrainedModel, LoadReport]":
    """The model that a checkpoint's config describes, with these weights, which are floating point by now."""
    kind = model_class(view.config)
    with building(str(view.path)), _in_turn():
        config = kind.config_class.from_dict(plain_config(view.config))
        if _passing(view.config):
            config.quantization_config = dict(view.config["quantization_config"]) | {"dequantize": True}
        model, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            **kwargs,
        )
    return model, LoadReport.of(info).within(view.config)


@contextmanager
def _in_turn() -> Iterator[None]:
    """Inside, transformers takes each tensor when it needs it. Its threads would hold all of a model's before the first
    is used: at MolmoE-1B's sizes another 3 GB for one block."""
    before = os.environ.get(_TAKE_IN_TURN)
    os.environ[_TAKE_IN_TURN] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TAKE_IN_TURN]
        else:
            os.environ[_TAKE_IN_TURN] = before


def model_class(config: Mapping[str, object]) -> "type[PreTrainedModel]":
    """The PyTorch class for a config: the family's own, or the one that its auto class has for it.

    Where the family names none, the class that the config does: an auto class for text may leave out a vision tower
    without a word.
    """
    named = architecture_named(config.get("model_type")).model_class
    if named is not None:
        kind = imported(named)
        return kind._model_mapping[CONFIG_MAPPING[config["model_type"]]] if hasattr(kind, "_model_mapping") else kind
    own = config.get("architectures")
    stock = getattr(transformers, str(own[0]), None) if isinstance(own, list) and own else None
    if isinstance(stock, type) and issubclass(stock, transformers.PreTrainedModel):
        return stock
    return _auto_class(config)


def _auto_class(config: Mapping[str, object]) -> "type[PreTrainedModel]":
    known = CONFIG_MAPPING[config["model_type"]]
    for auto in (transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM):
        if known in auto._model_mapping:
            found: type[PreTrainedModel] = auto._model_mapping[known]
            return found
    raise CheckpointError(
        f"transformers {transformers.__version__} has no class for {config['model_type']!r} models. "
        "Install a release that has one."
    )


def _passing(config: Mapping[str, object]) -> str | None:
    """The method of weights that another tool has quantised and that pass, if so."""
    method = lookup(config, "quantization_config.quant_method")
    return method if method in architecture_named(config.get("model_type")).quantised else None


def _as_values(method: str) -> "QuantizationConfigMixin":
    """What has transformers load quantised weights as the values that they stand for."""
    kinds = transformers.quantizers.auto.AUTO_QUANTIZATION_CONFIG_MAPPING
    found: QuantizationConfigMixin = kinds[method](dequantize=True)
    return found


def quiet_transformers() -> None:
    """One bar per loaded model would hide ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
