"""A graph's external weights as read-only views into their mapped files; no byte is read before it is used."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from export.run.external import External, check_external
from transform.arrays import Array
from transform.errors import VerificationError


def take_external(graph: Any, directory: Path) -> dict[str, Array]:
    """Remove the external initializers from a graph and map them."""
    external = [proto for proto in graph.initializer if proto.data_location == TensorProto.EXTERNAL]
    inside = [proto for proto in graph.initializer if proto.data_location != TensorProto.EXTERNAL]
    del graph.initializer[:]
    graph.initializer.extend(inside)
    # One map per file: thousands of tensors would otherwise be as many open files.
    files: dict[str, Array] = {}
    return {proto.name: _view(proto, directory, files) for proto in external}


def _view(proto: Any, directory: Path, files: dict[str, Array]) -> Array:
    entries = tuple((entry.key, entry.value) for entry in proto.external_data)
    external = External(proto.name, proto.data_type, tuple(proto.dims), entries)
    location, start, length = check_external(proto.name, [external], directory)[0]
    if location not in files:
        try:
            files[location] = np.asarray(np.memmap(directory / location, np.uint8, "r"))
        except (OSError, ValueError) as error:
            raise VerificationError(f"{location}: cannot be mapped ({error}). Export the variant again.") from error
    dtype = helper.tensor_dtype_to_np_dtype(proto.data_type)
    if length != math.prod(proto.dims) * dtype.itemsize:
        raise VerificationError(f"{proto.name}: numpy reads whole bytes, got {dtype}. Export the variant again.")
    return files[location][start : start + length].view(dtype).reshape(tuple(proto.dims))
