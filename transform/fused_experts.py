"""Experts fused into one array per block, as transformers 5 holds them in memory -> one tensor per expert, as views.

[experts, n * rows, columns] holds n projections of each expert behind each other, so every projection of every expert
is one range of bytes. Whatever follows sees a checkpoint with one tensor per expert, and variants are written so:
these are the names that all versions of transformers read.
"""

import re
from collections.abc import Iterator, Mapping

from transform.architectures import Architecture
from transform.errors import CheckpointError
from transform.safetensors_header import MAX_TENSORS, Entry


def split_fused(entries: Mapping[str, Entry], architecture: Architecture) -> dict[str, Entry]:
    """The table with every fused tensor replaced by its experts' projections, in the order of their bytes."""
    patterns = [
        (re.compile(re.escape(name).replace(re.escape("{i}"), r"(\d{1,6})") + r"\Z"), roles)
        for name, roles in architecture.fused.items()
    ]
    found: dict[str, Entry] = {}
    for entry in entries.values():
        match, roles = next(((m, roles) for pattern, roles in patterns if (m := pattern.match(entry.name))), (None, ()))
        parts = [entry] if match is None else _parts(entry, match[1], roles, architecture)
        for part in parts:
            if part.name in found or (match is not None and part.name in entries):
                raise CheckpointError(
                    f"{entry.name!r} holds {part.name!r}, which is there by itself as well. Save the model again with "
                    "transformers' save_pretrained."
                )
            found[part.name] = part
    return found


def _parts(entry: Entry, block: str, roles: tuple[str, ...], architecture: Architecture) -> Iterator[Entry]:
    shape = entry.shape
    if len(shape) != 3 or 0 in shape or shape[1] % len(roles) or shape[0] * len(roles) > MAX_TENSORS:
        raise CheckpointError(
            f"{entry.name!r} must hold the fused experts of a block, [experts, {len(roles)} x rows, columns], it has "
            f"the shape {list(shape)}. Save the model again with transformers' save_pretrained."
        )
    experts, rows, columns = shape[0], shape[1] // len(roles), shape[2]
    nbytes = entry.nbytes // (experts * len(roles))
    for expert in range(experts):
        for at, role in enumerate(roles):
            name = architecture.roles[role].names[0].format(i=int(block), e=expert)
            start = entry.start + (expert * len(roles) + at) * nbytes
            yield Entry(name, entry.dtype, (rows, columns), start, nbytes)
