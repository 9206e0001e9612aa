"""A safetensors file with any header, right or wrong."""

import json
from pathlib import Path

from transform.strict_json import Record


def write_raw(path: Path, header: Record, data: bytes, length: int | None = None) -> None:
    """Write a header as it is given and the bytes behind it; `length` is claimed instead of the header's own."""
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
