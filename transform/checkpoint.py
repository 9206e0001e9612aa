"""A checkpoint as a value: config and tensor table, read from headers. No tensor is loaded, torch isn't needed.

Passes (`passes.py`) take a Checkpoint and return another one whose tensors may be fewer or have other names, but still
know where their bytes lie in the source; `write.py` moves those bytes.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from transform.architectures import Architecture, Settings, architecture_of, beyond_the_model, lookup
from transform.architectures.graph_facts import DecoderGraph, decoder_graph
from transform.architectures.vocabulary import predictors
from transform.errors import CheckpointError

PACKED = "knobcast"  # how config.json calls weights quantised by `packed.py`
# What a config may say about the machine it was saved on: kernels that another one needn't have.
OF_A_MACHINE = (
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
)  # fmt: skip
# How tools call what they quantise with: the ends of names.
_QUANTISED = (
    "_scale", "_scale_inv", "_scales", ".scale", ".scales", ".biases", "_blocks", "_packed", ".qweight", ".qzeros",
    ".g_idx", ".absmax", ".quant_map", ".SCB", "_zero_point", ".nested_absmax", ".nested_quant_map", ".weight_format",
)  # fmt: skip


class Arrangement(StrEnum):
    """What a tensor has of the rows that codes are of."""

    ROWS = "rows"  # a matrix: every `step`-th of them
    SLAB = "slab"  # [E, rows, columns]: all, expert by expert
    HALVES = "halves"  # the same, but gate above up, whose rows take turns in the codes
    TURNED = "turned"  # [E, columns, rows]


class Pack(NamedTuple):
    """Block-quantised values as onnxruntime's kernels read them: value = (code - 2^(bits-1)) * scale of its block.

    `codes` and `scales` lie in the variant's packed file (`packed.py`). The experts of a block share one stacked pair,
    gate and up in alternating rows: counting all rows of the pair, a tensor has every `step`-th from `first` on.
    """

    codes: "Tensor"  # U8; low bits first
    scales: "Tensor"  # F32 or F16
    bits: int  # 4 or 8
    block: int  # values per scale, along the input features
    first: int = 0
    step: int = 1
    arrangement: Arrangement = Arrangement.ROWS


class Tensor(NamedTuple):
    """One tensor: what it will be called and typed, and where its bytes lie now."""

    name: str
    dtype: str  # safetensors spelling, as it will be written
    shape: tuple[int, ...]
    file: Path  # where the bytes lie
    start: int  # absolute position in that file
    nbytes: int  # length there
    stored: str  # dtype there; differs from `dtype` where a cast is planned
    pack: Pack | None = None  # set where the bytes are block-quantised codes; `stored` is then I4 or I8

    def view(self, expert: int, rows: slice | None = None) -> "Tensor":
        """One expert of a slab [E, rows, ...], or some of its rows: the same bytes under a name of their own."""
        outer, *inner = self.shape
        each = self.nbytes // outer
        name, start = f"{self.name}.{expert}", self.start + expert * each
        if rows is not None:
            first, behind, _ = rows.indices(inner[0])
            each = each // inner[0]
            name, start, inner[0] = f"{name}.{first}", start + first * each, behind - first
            each *= behind - first
        return self._replace(name=name, shape=tuple(inner), start=start, nbytes=each)


@dataclass(frozen=True)
class Checkpoint:
    """Config, tensors in file order, and the side files that travel along."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    side_files: tuple[str, ...]
    joined: bool = False  # to be written as one file in the order of `tensors`, whatever files they come from
    passes: tuple[str, ...] = ()  # the names of those that changed it since it was read, in order

    @cached_property
    def architecture(self) -> Architecture:
        """The family's data file."""
        return architecture_of(self.config)

    @cached_property
    def settings(self) -> Settings:
        """The decoder's numbers."""
        return self.architecture.settings(self.config)

    @cached_property
    def _spelling(self) -> dict[str, str]:
        """Role -> the spelling of its name that this checkpoint uses."""
        chosen = {}
        if not self.architecture.complete:
            return {role: self._spelt(names) for role, (names, _) in self.architecture.roles.items()}
        at = 0
        for role, (names, _) in self.architecture.roles.items():
            first = [name.format(i=0, e=0, j=0) for name in names]
            # a role whose names are not there (packed experts') is spelled as the one before
            at = next((n for n, name in enumerate(first) if name in self.tensors), min(at, len(names) - 1))
            chosen[role] = names[at]
        return chosen

    def _spelt(self, names: tuple[str, ...]) -> str:
        """The spelling that some block's tensor has, for not every block need have one; else the usual."""
        first = [
            name for name in names for i in range(self.settings.layers) if name.format(i=i, e=0, j=0) in self.tensors
        ]
        return first[0] if first else names[0]

    def has(self, role: str, i: int = 0, e: int = 0) -> bool:
        """Whether there is a tensor of a role, in this block: of roles that only some families or blocks have."""
        return role in self.architecture.roles and self.name(role, i, e) in self.tensors

    @cached_property
    def block_prefix(self) -> str:
        """What the names of tensors in blocks begin with, up to the block's number."""
        family = self.architecture
        beginnings = [block.partition("{i}")[0] for block in (family.block, *family.also)]
        if len(beginnings) > 1:
            return next((b for b in beginnings if any(name.startswith(b) for name in self.tensors)), beginnings[0])
        return beginnings[0]

    def block_of(self, name: str) -> tuple[int | None, str]:
        """(block, the name behind its number) of a tensor; (None, name) for one in no block."""
        number, _, part = name.removeprefix(self.block_prefix).partition(".")
        inside = name.startswith(self.block_prefix) and part and number.isascii() and number.isdigit()
        return (int(number), part) if inside else (None, name)

    def is_beyond(self, name: str) -> bool:
        """Whether a tensor is of blocks behind the decoder, or of another part that transformers doesn't load."""
        return self._beyond(name)

    @cached_property
    def _beyond(self) -> Callable[[str], bool]:
        return beyond_the_model(self.architecture, self.settings.layers)

    def find(self, role: str, i: int = 0) -> Tensor | None:
        """The tensor of a role that only some families or blocks have."""
        return self.tensors[self.name(role, i)] if self.has(role, i) else None

    @property
    def head(self) -> Tensor:
        """The output matrix: a tensor of its own where one is stored, tied or not, for transformers ties only equal
        ones; else the embedding's."""
        found = self.find("head")
        return self.tensor("embedding") if found is None else found

    @cached_property
    def graph(self) -> DecoderGraph:
        """What the decoder's graph computes besides; raises CheckpointError where none can."""
        return decoder_graph(self.architecture.graph, self.architecture.text_of(self.config), self.settings)

    def spelling(self, role: str) -> str:
        """How this checkpoint spells a role's names, with {i}, {e} and {j}: one way for all blocks."""
        return self._spelling[role]

    def name(self, role: str, i: int = 0, e: int = 0, j: int = 0) -> str:
        """The tensor name of a role such as `expert.gate` (block i, expert e; j counts vision blocks)."""
        return self._spelling[role].format(i=i, e=e, j=j)

    def tensor(self, role: str, i: int = 0, e: int = 0, j: int = 0) -> Tensor:
        """The tensor of a role; raises CheckpointError where it is missing."""
        name = self.name(role, i, e, j)
        if name not in self.tensors:
            raise CheckpointError(f"tensor {name!r} ({role}) is missing. The checkpoint is incomplete.")
        return self.tensors[name]

    def expected(self) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        """Every tensor name the architecture and the config ask for -> (role, shape in symbols)."""
        return self._expected

    @cached_property
    def _expected(self) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        if not self.architecture.complete:
            return {name: (self._roles.get(name, ""), ()) for name in self.tensors}
        wanted = {}
        vision = self.count("j")
        for role, (_, shape) in self.architecture.roles.items():
            pattern = self._spelling[role]
            blocks = range(self.settings.layers if "{i}" in pattern else 1)
            experts = range(self.settings.experts if "{e}" in pattern else 1)
            for i in blocks:
                for e in experts:
                    for j in range(vision if "{j}" in pattern else 1):
                        wanted[pattern.format(i=i, e=e, j=j)] = (role, shape)
        return wanted

    @cached_property
    def _roles(self) -> dict[str, str]:
        """Name -> role of the tensors that have one."""
        found = {}
        for role in self.architecture.roles:
            pattern = self._spelling[role]
            for i in range(self.settings.layers if "{i}" in pattern else 1):
                for e in range(self.settings.experts if "{e}" in pattern else 1):
                    if (name := pattern.format(i=i, e=e, j=0)) in self.tensors:
                        found[name] = role
        return found

    def bound(self) -> dict[str, int]:
        """The symbols of shapes that the settings give a number; tensors bind the others."""
        return {symbol: getattr(self.settings, setting) for symbol, setting in self.architecture.dims.items()}

    def count(self, index: str) -> int:
        """How far an index of the roles other than block and expert runs (`j`: vision blocks)."""
        key = self.architecture.counts.get(index)
        if key is None:
            return 0
        value = lookup(self.config, key)
        if type(value) is not int or not 1 <= value <= 1000:
            raise CheckpointError(f"config.json: {key} must be a whole number from 1 to 1000, got {value!r}.")
        return value

    @property
    def layout_digest(self) -> str:
        """SHA-256 over config and tensor table: what a plan can know without reading weights."""
        table = [(t.name, t.dtype, t.shape) for t in self.tensors.values()]
        text = json.dumps([self.config, table], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def check_tensors(checkpoint: Checkpoint) -> None:
    """Every tensor the architecture asks for is there with a consistent shape, and no other."""
    if not checkpoint.architecture.complete:
        check_blocks(checkpoint)
        return
    expected = checkpoint.expected()
    missing = [name for name in expected if name not in checkpoint.tensors]
    unexpected = [name for name in checkpoint.tensors if name not in expected]
    if missing or unexpected:
        first = f"; first missing: {missing[0]!r}" if missing else ""
        first += f"; first unexpected: {unexpected[0]!r}" if unexpected else ""
        scales = [name for name in unexpected if name.endswith(_QUANTISED)]
        if scales:
            raise CheckpointError(
                f"weights must be plain floating point numbers, {len(scales)} tensors such as {scales[0]!r} belong to "
                "quantised ones. Use the checkpoint it was made of, or dequantise it first."
            )
        in_memory = [name for name in unexpected if name.endswith(".experts.gate_up_proj")]
        if in_memory:
            raise CheckpointError(
                f"tensors must have the names that a {checkpoint.architecture.model_type!r} checkpoint has, "
                f"{in_memory[0]!r} is one that transformers uses in memory. Save the model again by save_pretrained, "
                "without save_original_format=False."
            )
        raise CheckpointError(
            f"config.json describes {len(expected)} tensors, the files hold {len(checkpoint.tensors)}: "
            f"{len(missing)} missing, {len(unexpected)} unexpected{first}. "
            "Config and weights must be of one checkpoint."
        )
    bound = checkpoint.bound()
    for symbol, key in checkpoint.architecture.config_dims.items():
        value = lookup(checkpoint.config, key)
        if value is not None and not (type(value) is int and value > 0 and agrees(symbol, value, bound)):
            raise CheckpointError(
                f"config.json: {key} does not fit the other sizes ({symbol} = {value!r}, {bound}). "
                "Restore the original config.json."
            )
    for name, (_, symbols) in expected.items():
        shape = checkpoint.tensors[name].shape
        if len(shape) != len(symbols) or not all(
            agrees(symbol, size, bound) for symbol, size in zip(symbols, shape, strict=True)
        ):
            raise CheckpointError(
                f"{name!r} must have the shape [{', '.join(symbols)}] with {bound}, it has {list(shape)}. "
                "Config and weights must be of one checkpoint."
            )
    floats = {t.dtype for t in checkpoint.tensors.values() if t.pack is None} - {"F32", "F16", "BF16"}
    if floats:
        raise CheckpointError(
            f"weights must be F32, F16 or BF16, found {', '.join(sorted(floats))}. Convert the checkpoint first."
        )


def check_blocks(checkpoint: Checkpoint) -> None:
    """Where no family says all names: each block has tensors, none is beyond but what predicts further tokens."""
    layers = checkpoint.settings.layers
    text = checkpoint.architecture.text_of(checkpoint.config)
    found = {block for name in checkpoint.tensors if (block := checkpoint.block_of(name)[0]) is not None}
    if missing := [i for i in range(layers) if i not in found]:
        raise CheckpointError(
            f"config.json describes {layers} blocks, {len(missing)} of them have no tensor, the first is block "
            f"{missing[0]} ({checkpoint.block_prefix}{missing[0]}.). Config and weights must be of one checkpoint."
        )
    kinds = {t.dtype for t in checkpoint.tensors.values() if t.pack is None} - {"F32", "F16", "BF16"}
    if kinds and lookup(checkpoint.config, "quantization_config") is None:
        raise CheckpointError(
            f"weights must be F32, F16 or BF16, found {', '.join(sorted(kinds))}. Convert the checkpoint first, or "
            "take the release that it was quantised from."
        )
    if max(found) >= layers + predictors(text):
        raise CheckpointError(
            f"config.json describes {layers} blocks, there are tensors of block {max(found)}. "
            "Config and weights must be of one checkpoint."
        )


def agrees(symbol: str, size: int, bound: dict[str, int]) -> bool:
    """Whether a size agrees with a symbol such as `d` or `3*d`; a symbol met first is bound to it. No size is 0."""
    if size < 1:
        return False
    if symbol.isdigit():
        return size == int(symbol)
    factor, _, name = symbol.rpartition("*")
    times = int(factor or 1)
    return size % times == 0 and bound.setdefault(name, size // times) == size // times
