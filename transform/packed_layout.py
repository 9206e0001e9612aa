"""What a quantised checkpoint's file holds, from names and shapes alone. No tensor is read, numpy isn't needed.

Of each attention matrix, the head, the layers that every token has and the vision side's matrices NAME.codes and
NAME.scales, for `MatMulNBits`, of the embedding tables the same, for `GatherBlockQuantized`; of the experts of block i
one pair blocks.{i}.experts.gate_up (rows gate 0, up 0, gate 1, ...) and one blocks.{i}.experts.down, for `QMoE`, which
are called as the slabs where experts lie in such; all else as it is planned. Writing and
reading are `packed.py`'s, the arithmetic is `packing.py`'s.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from transform.architectures import lookup
from transform.checkpoint import PACKED, Arrangement, Checkpoint, Tensor
from transform.errors import CheckpointError
from transform.experts import experts_of, is_turned, turned_experts_of
from transform.forms import ACTIVATIONS, Form
from transform.knobs import DTYPES
from transform.passes import broken_word
from transform.safetensors_header import ITEM_BYTES, Entry
from transform.strict_json import Record

Choice = TypeVar("Choice", int, str)
BLOCK = 32  # values per scale
BITS = (4, 8)
BLOCKS = (16, 32, 64, 128, 256)  # what the kernels accept
SCALES = ("float16", "float32")  # the first: 4.5 bits a weight in blocks of 32; earlier versions wrote the other
FILES = {4: "model-int4.safetensors", 8: "model-int8.safetensors"}
MATRICES = (
    "attention.qkv", "attention.q", "attention.k", "attention.v", "attention.out", "head",
    "shared.gate_up", *(f"{layer}.{part}" for layer in ("shared", "dense") for part in ("gate", "up", "down")),
)  # fmt: skip
TABLES = ("embedding", "embedding.extra")
VISION = (
    "vision.patch", *(f"vision.{part}.weight" for part in ("q", "k", "v", "out", "fc1", "fc2")),
    *(f"pool.{part}.weight" for part in ("q", "k", "v", "out")), "projector.gate", "projector.up", "projector.down",
)  # fmt: skip
_KEYS = {"quant_method", "bits", "block_size", "embedding_bits", "vision_bits", "scale_dtype", "activations"}
_UNSAID = "float32"  # scales where a config says nothing of them
_EXPERTS = {"gate_up": ("gate", "up"), "down": ("down",)}  # stem of a pair -> the parts whose rows alternate in it
_SLABS = {"gate_up": "expert.gate_up", "down": "expert.down_slab"}


@dataclass(frozen=True)
class Packing:
    """How a checkpoint is quantised: what its config.json says under `quantization_config`.

    `bits`: of attention, head and experts, 4 or 8; `block`: values per scale; `tables` and `vision`: bits of the
    embedding tables and of the vision side's matrices, None where these stay floats; `scales`: the dtype of all scales
    but the experts', which are float16.
    """

    bits: int
    block: int = BLOCK
    tables: int | None = None
    vision: int | None = None
    scales: str = SCALES[0]

    def __post_init__(self) -> None:
        _chosen(self.bits, BITS, "bits")
        _chosen(self.block, BLOCKS, "values per scale")
        _chosen(self.scales, SCALES, "scales")
        for bits in (self.tables, self.vision):
            if bits is not None:
                _chosen(bits, BITS, "bits")

    def bits_of(self, role: str) -> int | None:
        """Of a matrix that has codes of its own; None: it stays as it is, or is an expert's."""
        if role in TABLES:
            return self.tables
        return self.vision if role in VISION else self.bits if role in MATRICES else None

    def as_config(self) -> Record:
        """The config's entry; what stays floats isn't named."""
        said = {"bits": self.bits, "block_size": self.block, "embedding_bits": self.tables, "vision_bits": self.vision}
        said = {key: value for key, value in said.items() if value is not None}
        return {"quant_method": PACKED, **said, **({} if self.scales == _UNSAID else {"scale_dtype": self.scales})}

    def __str__(self) -> str:
        """`4 bits (attention, head, experts) and 8 bits (vision side), in blocks of 32`."""
        parts = {"attention, head, experts": self.bits, "embedding tables": self.tables, "vision side": self.vision}
        words = [
            f"{bits} bits ({', '.join(part for part, own in parts.items() if own == bits)})"
            for bits in BITS
            if bits in parts.values()
        ]
        return f"{' and '.join(words)}, in blocks of {self.block}"


def packing_for(form: Form, checkpoint: Checkpoint) -> Packing | None:
    """How a form quantises a float checkpoint; None: it doesn't."""
    if form.bits is None:
        return None
    vision = form.vision_bits if checkpoint.architecture.modality.sees_images else None
    return Packing(form.bits, tables=form.table_bits, vision=vision)


def packing_of(config: Mapping[str, object]) -> Packing | None:
    """What a config says of its weights; None: they are floats. Raises CheckpointError for what no kernel reads."""
    about = config.get("quantization_config")
    if not isinstance(about, dict) or about.get("quant_method") != PACKED:
        return None
    if unknown := about.keys() - _KEYS:
        names = ", ".join(sorted(unknown))
        raise CheckpointError(f"config.json: quantization_config holds unknown keys ({names}). Export it again.")
    tables, vision = (
        _chosen(about[key], BITS, "bits") if key in about else None for key in ("embedding_bits", "vision_bits")
    )
    bits, block = _chosen(about.get("bits"), BITS, "bits"), _chosen(about.get("block_size"), BLOCKS, "values per scale")
    return Packing(bits, block, tables, vision, _chosen(about.get("scale_dtype", _UNSAID), SCALES, "scales"))


def _chosen(value: object, choices: tuple[Choice, ...], what: str) -> Choice:
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    words = ", ".join(map(str, choices))
    raise CheckpointError(f"quantised weights must have {words} {what}, got {value!r}. Export it again.")


class Stack(NamedTuple):
    """One pair of codes and scales to be, and the float matrices whose rows it takes, `step` of them in turns."""

    stem: str
    members: tuple[str, ...]  # names of the tensors that it holds all of
    matrices: tuple[Tensor, ...]  # these tensors, or views of them
    step: int
    leading: tuple[int, ...]  # shape before the blocks: [rows], or [experts, rows of all in turns]
    columns: int
    bits: int
    scale_dtype: str
    arrangement: Arrangement = Arrangement.ROWS


def stacks(checkpoint: Checkpoint, packing: Packing) -> Iterator[Stack]:
    """What is packed of a checkpoint, by its names and shapes; raises CheckpointError where a width doesn't fit."""
    for name, (role, _) in checkpoint.expected().items():
        bits = packing.bits_of(role)
        if bits is not None:
            tensor = checkpoint.tensors[name]
            rows, columns = tensor.shape
            yield Stack(name, (name,), (tensor,), 1, (rows,), columns, bits, DTYPES[packing.scales])
    for i, count in enumerate(checkpoint.settings.experts_of):
        if not count:
            continue
        turned = is_turned(checkpoint, i)
        experts = turned_experts_of(checkpoint, i) if turned else experts_of(checkpoint, i)
        for stem, turns in _EXPERTS.items():
            slab, parts = checkpoint.find(_SLABS[stem], i), (stem,) if turned else turns
            matrices = tuple(getattr(expert, part) for expert in experts for part in parts)
            rows, columns = matrices[0].shape[::-1] if turned else matrices[0].shape
            if columns % packing.block:
                raise CheckpointError(
                    f"block {i}: the input width of an expert's {' and '.join(parts)} must be a multiple of "
                    f"{packing.block} (values per scale), it is {columns}. Use --form cpu."
                )
            leading = (count, rows * len(parts))
            members, arrangement = tuple(matrix.name for matrix in matrices), Arrangement.ROWS
            if slab is not None:
                members, arrangement = (slab.name,), slab_arrangement(checkpoint, i, stem)
            name = f"blocks.{i}.experts.{stem}" if slab is None else slab.name
            yield Stack(name, members, matrices, len(parts), leading, columns, packing.bits, "F16", arrangement)


def slab_arrangement(checkpoint: Checkpoint, i: int, stem: str) -> Arrangement:
    """How the codes of a slab's experts make that slab."""
    if is_turned(checkpoint, i):
        return Arrangement.TURNED
    return Arrangement.HALVES if stem == "gate_up" else Arrangement.SLAB


def entries(checkpoint: Checkpoint, packing: Packing) -> dict[str, Entry]:
    """The file's tensors, `start` counted from the end of the header; wider types first, so that all are aligned."""
    stacked = list(stacks(checkpoint, packing))
    _ensure_whole(checkpoint, stacked)
    packed = {name for stack in stacked for name in stack.members}
    found: list[tuple[str, str, tuple[int, ...]]] = []
    for stack in stacked:
        blocks, width = -(-stack.columns // packing.block), packing.block * stack.bits // 8
        row = (blocks, width) if len(stack.leading) == 1 else (blocks * width,)
        found.append((f"{stack.stem}.codes", "U8", (*stack.leading, *row)))
        found.append((f"{stack.stem}.scales", stack.scale_dtype, (*stack.leading, blocks)))
    found += [(t.name, t.dtype, t.shape) for t in checkpoint.tensors.values() if t.name not in packed]
    found.sort(key=lambda entry: -ITEM_BYTES[entry[1]])
    at, placed = 0, {}
    for name, dtype, shape in found:
        size = math.prod(shape) * ITEM_BYTES[dtype]
        placed[name] = Entry(name, dtype, shape, at, size)
        at += size
    return placed


def _ensure_whole(checkpoint: Checkpoint, stacked: Sequence[Stack]) -> None:
    """What packing ensures, as passes do: each value of a matrix has one place in one stack."""
    members = [name for stack in stacked for name in stack.members]
    if len(set(members)) < len(members):
        raise broken_word("pack", f"{len(members) - len(set(members))} matrices lie in two stacks")
    for stack in stacked:
        held = sum(math.prod(checkpoint.tensors[name].shape) for name in stack.members)
        if held != math.prod(stack.leading) * stack.columns:
            room = f"{math.prod(stack.leading):,} rows of {stack.columns:,}"
            raise broken_word("pack", f"{stack.stem!r} has room for {room} values, {held:,} are to lie there")


def packed_bytes(checkpoint: Checkpoint, packing: Packing) -> int:
    """Bytes that a float checkpoint's tensors will take when packed."""
    return sum(entry.nbytes for entry in entries(checkpoint, packing).values())


def activations_of(config: Mapping[str, object]) -> str:
    """What a checkpoint's quantised matrices are multiplied with, by its config; raises CheckpointError."""
    ours = lookup(config, "quantization_config.quant_method") == PACKED
    found = lookup(config, "quantization_config.activations") if ours else None
    if found is None:
        return ACTIVATIONS[0]
    if found not in ACTIVATIONS:
        words = " or ".join(ACTIVATIONS)
        raise CheckpointError(f"config.json: activations must be {words}, got {str(found)[:40]!r}. Export it again.")
    return str(found)
