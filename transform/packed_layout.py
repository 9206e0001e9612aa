"""What a quantised checkpoint's file holds, from names and shapes alone. No tensor is read, numpy isn't needed.

Of each attention matrix and the head NAME.codes and NAME.scales, for `MatMulNBits`; of the experts of block i one pair
blocks.{i}.experts.gate_up (rows gate 0, up 0, gate 1, ...) and one blocks.{i}.experts.down, for `QMoE`; all else as
it is planned. Writing and reading are `packed.py`'s, the arithmetic is `packing.py`'s.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from transform.architectures import lookup
from transform.checkpoint import PACKED, Checkpoint
from transform.errors import CheckpointError
from transform.forms import ACTIVATIONS
from transform.passes import broken_word
from transform.safetensors_header import ITEM_BYTES, Entry

BLOCK = 32  # values per scale
BITS = (4, 8)
BLOCKS = (16, 32, 64, 128, 256)  # what the kernels accept
SCALES = "F16"  # 4.5 bits a weight in blocks of 32; earlier versions wrote the matrices' in F32
FILES = {4: "model-int4.safetensors", 8: "model-int8.safetensors"}
MATRICES = ("attention.qkv", "attention.q", "attention.k", "attention.v", "attention.out", "head")
_EXPERTS = {"gate_up": ("gate", "up"), "down": ("down",)}  # stem of a pair -> the parts whose rows alternate in it


class Stack(NamedTuple):
    """One pair of codes and scales to be, and the float matrices whose rows it takes, `step` of them in turns."""

    stem: str
    members: tuple[str, ...]
    step: int
    leading: tuple[int, ...]  # shape before the blocks: [rows], or [experts, rows of all in turns]
    columns: int
    scale_dtype: str


def stacks(checkpoint: Checkpoint, block: int, scales: str = SCALES) -> Iterator[Stack]:
    """What is packed of a checkpoint, by its names and shapes; raises CheckpointError where a width doesn't fit.

    `scales`: their dtype where it is to be chosen: those of a matrix that is quantised already stay as they are.
    """
    for name, (role, _) in checkpoint.expected().items():
        if role in MATRICES:
            tensor = checkpoint.tensors[name]
            rows, columns = tensor.shape
            yield Stack(name, (name,), 1, (rows,), columns, tensor.pack.scales.stored if tensor.pack else scales)
    settings = checkpoint.settings
    for i in range(settings.layers):
        for stem, parts in _EXPERTS.items():
            rows, columns = checkpoint.tensor(f"expert.{parts[0]}", i).shape
            if columns % block:
                raise CheckpointError(
                    f"block {i}: the input width of an expert's {' and '.join(parts)} must be a multiple of {block} "
                    f"(values per scale), it is {columns}. Use --form cpu."
                )
            names = tuple(checkpoint.name(f"expert.{p}", i, e) for e in range(settings.experts) for p in parts)
            leading = (settings.experts, rows * len(parts))
            yield Stack(f"blocks.{i}.experts.{stem}", names, len(parts), leading, columns, SCALES)


def entries(checkpoint: Checkpoint, bits: int, block: int, scales: str = SCALES) -> dict[str, Entry]:
    """The file's tensors, `start` counted from the end of the header; wider types first, so that all are aligned."""
    check_format(bits, block)
    packing = list(stacks(checkpoint, block, scales))
    _ensure_whole(checkpoint, packing)
    packed = {name for stack in packing for name in stack.members}
    found: list[tuple[str, str, tuple[int, ...]]] = []
    for stack in packing:
        blocks = -(-stack.columns // block)
        row = (blocks, block * bits // 8) if len(stack.leading) == 1 else (blocks * block * bits // 8,)
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


def _ensure_whole(checkpoint: Checkpoint, packing: Sequence[Stack]) -> None:
    """What packing ensures, as passes do: each value of a matrix has one place in one stack."""
    members = [name for stack in packing for name in stack.members]
    if len(set(members)) < len(members):
        raise broken_word("pack", f"{len(members) - len(set(members))} matrices lie in two stacks")
    for stack in packing:
        held = sum(math.prod(checkpoint.tensors[name].shape) for name in stack.members)
        if held != math.prod(stack.leading) * stack.columns:
            room = f"{math.prod(stack.leading):,} rows of {stack.columns:,}"
            raise broken_word("pack", f"{stack.stem!r} has room for {room} values, {held:,} are to lie there")


def packed_bytes(checkpoint: Checkpoint, bits: int, block: int = BLOCK) -> int:
    """Bytes that a float checkpoint's tensors will take when packed."""
    return sum(entry.nbytes for entry in entries(checkpoint, bits, block).values())


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


def check_format(bits: object, block: object) -> None:
    """Raise CheckpointError for a number of bits or a block size that the kernels don't have."""
    for value, choices, what in ((bits, BITS, "bits"), (block, BLOCKS, "values per scale")):
        if type(value) is not int or value not in choices:
            words = ", ".join(map(str, choices))
            raise CheckpointError(f"quantised weights must have {words} {what}, got {value!r}. Export it again.")
