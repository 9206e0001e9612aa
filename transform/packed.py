"""A checkpoint whose matrices are block-quantised, in one file: write it, read it back, its values.

What lies where is `packed_layout.py`'s to say. Read back it is a Checkpoint of the float one's names and shapes, its
quantised tensors with a `pack`. Its blocks and k can still change, its codes and scales no more.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from transform.architectures.graph_facts import GateUp
from transform.arrays import Array
from transform.checkpoint import Arrangement, Checkpoint, Pack, Tensor, agrees, check_tensors
from transform.copying import RangeCopier, write_at
from transform.errors import CheckpointError
from transform.forms import ACTIVATIONS
from transform.packed_layout import FILES, Packing, Stack, activations_of, entries, packing_of, stacks
from transform.packing import decode, encode
from transform.progress import Progress
from transform.safetensors_header import Entry, read_header
from transform.side_files import copy_side_files, side_files
from transform.strict_json import Record
from transform.write import convert, insist_on_space, nothing, read_range, refuse_packed, rounded, write_json

_KINDS = {"F32": "<f4", "F16": "<f2"}
_ALIGNMENT = 64
_AT_ONCE = 1 << 20  # values of source


def write_packed(
    checkpoint: Checkpoint,
    directory: Path,
    packing: Packing,
    progress: Progress = nothing,
    activations: str = ACTIVATIONS[0],
) -> None:
    """Write a planned checkpoint, quantised, into the empty `directory`: weights, config, side files.

    Streams: holds a few rows at a time. `progress` is told the bytes of source read. Raises CheckpointError for what
    can't be quantised and WriteError for lack of space.
    """
    _check_same(checkpoint, packing)
    placed = entries(checkpoint, packing)
    insist_on_space(sum(entry.nbytes for entry in placed.values()), directory)
    header = _header(placed)
    starts = {name: len(header) + entry.start for name, entry in placed.items()}
    with ExitStack() as files, (directory / FILES[packing.bits]).open("w+b") as out:
        out.write(header)
        out.flush()
        sources = _Sources(files, progress)
        for stack in stacks(checkpoint, packing):
            found = checkpoint.tensors[stack.members[0]].pack
            if found is None:
                _write_stack(stack, packing.block, sources, out, starts)
            else:
                for part, which in ((found.codes, "codes"), (found.scales, "scales")):
                    copier = RangeCopier(sources.file(part.file), out.fileno(), progress)
                    copier.copy(part.start, starts[f"{stack.stem}.{which}"], part.nbytes)
        for tensor in checkpoint.tensors.values():
            if tensor.name in starts:
                source = sources.file(tensor.file)
                if tensor.dtype == tensor.stored:
                    RangeCopier(source, out.fileno(), progress).copy(tensor.start, starts[tensor.name], tensor.nbytes)
                else:
                    convert(tensor, source, out.fileno(), starts[tensor.name], progress)
    about = packing.as_config()
    if activations != ACTIVATIONS[0]:
        about["activations"] = activations
    write_json(directory / "config.json", {**checkpoint.config, "quantization_config": about})
    copy_side_files(checkpoint.path, checkpoint.side_files, directory)


def _check_same(checkpoint: Checkpoint, packing: Packing) -> None:
    found = packing_of(checkpoint.config)
    if found not in (None, packing):
        raise CheckpointError(
            f"{checkpoint.path}: its weights are quantised to {found}, and can't be to {packing} any more. Export from "
            "the source they were made of."
        )


def fake_quantised(checkpoint: Checkpoint, packing: Packing) -> Iterator[tuple[str, Callable[[], Array]]]:
    """(name, what computes its float32 values) of all that would be packed of a float checkpoint: what `dequantise`
    would then give. The values of all together take more memory than most callers have."""
    refuse_packed(checkpoint)
    for stack in stacks(checkpoint, packing):
        if stack.arrangement is not Arrangement.ROWS:
            slab = checkpoint.tensors[stack.members[0]]
            yield slab.name, partial(_fake_slab, slab, stack, packing.block)
            continue
        for tensor in stack.matrices:
            yield tensor.name, partial(_fake_quantise, tensor, stack, packing.block)


def _fake_quantise(tensor: Tensor, stack: Stack, block: int) -> Array:
    turned = stack.arrangement is Arrangement.TURNED
    values = np.empty(tensor.shape[::-1] if turned else tensor.shape, np.float32)
    kind = _KINDS[stack.scale_dtype]
    with ExitStack() as files:
        for at, rows in _Sources(files, nothing).rows(tensor, turned):
            codes, scales = encode(rows, stack.bits, block, kind, tensor.name)
            values[at : at + len(rows)] = decode(codes, scales, stack.bits, rows.shape[1])
    return values.T if turned else values


def _fake_slab(slab: Tensor, stack: Stack, block: int) -> Array:
    values = np.empty(slab.shape, np.float32)
    for e in range(slab.shape[0]):
        turn = stack.matrices[e * stack.step : (e + 1) * stack.step]
        values[e] = np.concatenate([_fake_quantise(matrix, stack, block) for matrix in turn])
    return values


def dequantise(tensor: Tensor) -> Array:
    """The float32 values of a packed tensor, in its shape."""
    assert tensor.pack is not None, tensor.name
    codes, scales, bits, block, first, step, arrangement = tensor.pack
    if arrangement is Arrangement.ROWS:
        rows, columns = tensor.shape
    else:
        outer, *inner = tensor.shape
        each, columns = inner[::-1] if arrangement is Arrangement.TURNED else inner
        rows = outer * each
    total = math.prod(scales.shape) // -(-columns // block)

    def taken(part: Tensor, kind: str) -> Array:
        width = part.nbytes // total
        count = (step * (rows - 1) + 1) * width
        data = np.fromfile(part.file, np.uint8, count, offset=part.start + first * width)
        return data.reshape(-1, width)[::step].view(kind)

    values = decode(taken(codes, "u1"), taken(scales, _KINDS[scales.stored]), bits, columns)
    if arrangement is Arrangement.HALVES:
        values = values.reshape(outer, each // 2, 2, columns).swapaxes(1, 2)
    elif arrangement is Arrangement.TURNED:
        values = values.reshape(outer, each, columns).swapaxes(1, 2)
    return np.ascontiguousarray(values.reshape(tensor.shape))


def read_packed(directory: Path, config: Record) -> Checkpoint:
    """The packed checkpoint in a directory, strictly checked; raises CheckpointError.

    `nbytes` of a packed tensor is its share of codes and scales, so that all tensors together make up the file's data.
    """
    packing = packing_of(config)
    assert packing is not None
    activations_of(config)
    path = directory / FILES[packing.bits]
    held = {e.name: Tensor(e.name, e.dtype, e.shape, path, e.start, e.nbytes, e.dtype) for e in read_header(path)}
    checkpoint = Checkpoint(directory, config, _floats(directory, config, packing, held, path), side_files(directory))
    wanted = entries(checkpoint, packing)
    _compare(wanted, held, path.name)
    tensors = dict(checkpoint.tensors)
    for stack in stacks(checkpoint, packing):
        codes, scales = held[f"{stack.stem}.codes"], held[f"{stack.stem}.scales"]
        share = (codes.nbytes + scales.nbytes) // len(stack.members)
        for at, name in enumerate(stack.members):
            turn, place = divmod(at, stack.step)
            first = turn * stack.step * tensors[name].shape[0] + place
            found = Pack(codes, scales, stack.bits, packing.block, first, stack.step)
            if stack.arrangement is not Arrangement.ROWS:
                found = Pack(codes, scales, stack.bits, packing.block, arrangement=stack.arrangement)
            kind = f"I{stack.bits}"
            tensors[name] = Tensor(name, kind, tensors[name].shape, path, codes.start, share, kind, found)
    checkpoint = Checkpoint(directory, config, tensors, checkpoint.side_files)
    check_tensors(checkpoint)
    return checkpoint


def _floats(
    directory: Path, config: Mapping[str, object], packing: Packing, held: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """The table of the float checkpoint: its names and shapes, with bytes only for what isn't packed."""
    stems = {name.removesuffix(".codes"): tensor for name, tensor in held.items() if name.endswith(".codes")}
    named = Checkpoint(directory, config, {**held, **stems}, ())
    if not named.architecture.complete:
        return _floats_by_role(named, packing, held, path)
    bound, expected, roles = named.bound(), named.expected(), named.architecture.roles
    for name, (role, symbols) in expected.items():
        if packing.bits_of(role) and name in stems and stems[name].shape:
            agrees(symbols[0], stems[name].shape[0], bound)
        elif name in held and len(held[name].shape) == len(symbols):
            for symbol, size in zip(symbols, held[name].shape, strict=True):
                agrees(symbol, size, bound)
    stacked = stems.get("blocks.0.experts.gate_up")
    if stacked is not None and len(stacked.shape) == 3:
        agrees(roles["expert.gate"].shape[0], stacked.shape[1] // 2, bound)
    tensors = {}
    for name, (role, symbols) in expected.items():
        if packing.bits_of(role) or role.startswith("expert."):
            tensors[name] = Tensor(name, "U8", _numbers(name, symbols, bound), path, 0, 0, "U8")
        elif name in held:
            tensors[name] = held[name]
    return tensors


def _floats_by_role(named: Checkpoint, packing: Packing, held: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same where shapes follow from what a tensor is: codes tell how many rows, other tensors how wide they are."""
    settings, blocks = named.settings, {name.removesuffix(".codes") for name in held if name.endswith(".codes")}
    tensors = {
        name: tensor
        for name, tensor in held.items()
        if name.removesuffix(".codes").removesuffix(".scales") not in blocks
    }

    def add(name: str, *shape: int) -> None:
        tensors[name] = Tensor(name, "U8", shape, path, 0, 0, "U8")

    def rows(role: str, i: int) -> int:
        return named.tensors[named.name(role, i)].shape[0]

    for name, (role, _) in named.expected().items():
        if packing.bits_of(role) and name in blocks:
            layer, _, part = role.partition(".")
            i = named.block_of(name)[0] or 0
            columns = settings.hidden
            if role == "attention.out":
                columns = settings.heads * settings.head_dim
            elif part == "down":
                joined = named.has(f"{layer}.gate_up", i)
                columns = rows(f"{layer}.gate_up", i) // 2 if joined else rows(f"{layer}.gate", i)
            add(name, rows(role, i), columns)
    turned = named.graph.gate_up is GateUp.ALTERNATING
    for i, count in enumerate(settings.experts_of):
        slab = named.name("expert.gate_up", i)
        codes = held.get(f"{slab if slab in blocks else f'blocks.{i}.experts.gate_up'}.codes")
        if not count or codes is None or len(codes.shape) != 3:
            continue  # what is missing is missed by name
        inner, width = codes.shape[1] // 2, settings.hidden
        if slab in blocks:
            add(slab, count, *((width, 2 * inner) if turned else (2 * inner, width)))
            add(named.name("expert.down_slab", i), count, *((inner, width) if turned else (width, inner)))
            continue
        for e in range(count):
            add(named.name("expert.gate", i, e), inner, width)
            add(named.name("expert.up", i, e), inner, width)
            add(named.name("expert.down", i, e), width, inner)
    return tensors


def _numbers(name: str, symbols: tuple[str, ...], bound: Mapping[str, int]) -> tuple[int, ...]:
    shape = []
    for symbol in symbols:
        factor, _, base = symbol.rpartition("*")
        if not base.isdigit() and base not in bound:
            raise CheckpointError(f"the codes of {name!r} are missing or empty. Export the variant again.")
        shape.append(int(factor or 1) * (int(base) if base.isdigit() else bound[base]))
    return tuple(shape)


def _compare(wanted: Mapping[str, Entry], held: Mapping[str, Tensor], file: str) -> None:
    missing = [name for name in wanted if name not in held]
    unexpected = [name for name in held if name not in wanted]
    if missing or unexpected:
        first = f"; first missing: {missing[0]!r}" if missing else ""
        first += f"; first unexpected: {unexpected[0]!r}" if unexpected else ""
        raise CheckpointError(
            f"{file}: by config.json it holds {len(wanted)} tensors, by its header {len(held)}{first}. "
            "Config and weights must be of one checkpoint: export it again."
        )
    for name, entry in wanted.items():
        found = held[name]
        if (found.dtype, found.shape) != (entry.dtype, entry.shape):
            raise CheckpointError(
                f"{file}: {name!r} must be {entry.dtype} of {list(entry.shape)}, it is {found.dtype} of "
                f"{list(found.shape)}. Config and weights must be of one checkpoint: export it again."
            )


class _Sources:
    """The source's files, each opened once, and the float32 rows of its matrices."""

    def __init__(self, files: ExitStack, progress: Progress) -> None:
        self._files, self._progress = files, progress
        self._open: dict[Path, int] = {}

    def file(self, path: Path) -> int:
        """An open file's descriptor."""
        if path not in self._open:
            self._open[path] = self._files.enter_context(path.open("rb")).fileno()
        return self._open[path]

    def rows(self, tensor: Tensor, turned: bool = False) -> Iterator[tuple[int, Array]]:
        """(index of the first row, some rows as planned, in float32), to the last one; `turned`: of its transpose."""
        if turned:
            data = read_range(tensor, self.file(tensor.file), 0, tensor.nbytes)
            values = rounded(tensor, data).astype(np.float32, copy=False).reshape(tensor.shape)
            yield 0, np.ascontiguousarray(values.T)
            self._progress(tensor.nbytes)
            return
        rows, columns = tensor.shape
        width = tensor.nbytes // rows
        step = max(1, _AT_ONCE // columns)
        for at in range(0, rows, step):
            count = min(step, rows - at) * width
            data = read_range(tensor, self.file(tensor.file), at * width, count)
            yield at, rounded(tensor, data).astype(np.float32, copy=False).reshape(-1, columns)
            self._progress(count)


def _header(placed: Mapping[str, Entry]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, entry in placed.items():
        span = [entry.start, entry.start + entry.nbytes]
        table[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": span}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_stack(
    stack: Stack,
    block: int,
    sources: _Sources,
    out: BinaryIO,
    starts: dict[str, int],
) -> None:
    """Quantise the rows of all members, alternating within a turn, and write them where they belong."""
    starting = [starts[f"{stack.stem}.codes"], starts[f"{stack.stem}.scales"]]
    turned = stack.arrangement is Arrangement.TURNED
    for turn in range(0, len(stack.matrices), stack.step):
        tensors = stack.matrices[turn : turn + stack.step]
        for parts in zip(*(sources.rows(tensor, turned) for tensor in tensors), strict=True):
            pairs = [
                encode(rows, stack.bits, block, _KINDS[stack.scale_dtype], tensor.name)
                for tensor, (_, rows) in zip(tensors, parts, strict=True)
            ]
            for which, arrays in enumerate(zip(*pairs, strict=True)):
                data = np.stack(arrays, 1).tobytes()
                starting[which] += write_at(out.fileno(), data, starting[which])
