"""A graph's external weights as read-only views into their mapped files; no byte is read before it is used."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from export.numpy_run.arithmetic import Array
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
    entries = {entry.key: entry.value for entry in proto.external_data}
    location, start = entries["location"], int(entries.get("offset", 0))
    if Path(location).name != location:
        raise VerificationError(f"{proto.name}: weights must lie beside the graph, got {location!r}.")
    if location not in files:
        try:
            files[location] = np.asarray(np.memmap(directory / location, np.uint8, "r"))
        except (OSError, ValueError) as error:
            raise VerificationError(f"{location}: cannot be mapped ({error}). Export the variant again.") from error
    dtype = helper.tensor_dtype_to_np_dtype(proto.data_type)
    wanted = math.prod(proto.dims) * dtype.itemsize
    length = int(entries.get("length", wanted))
    if length != wanted or start < 0 or start + length > files[location].size:
        raise VerificationError(
            f"{proto.name}: {list(proto.dims)} of {dtype} must be {wanted:,} bytes inside {location} "
            f"({files[location].size:,} bytes), the graph names {length:,} from {start:,}. Export the variant again."
        )
    return files[location][start : start + length].view(dtype).reshape(tuple(proto.dims))
