"""JSON that other people wrote, read strictly: what comes out can be written again and means one thing. No torch.

Python's json takes the last of two equal keys, NaN, infinities and half characters, and files without end.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from transform.errors import CheckpointError
from transform.regular_file import LFS_POINTER, IrregularError, read_regular

Record = dict[str, Any]  # a JSON object
MAX_JSON_BYTES = 4_000_000  # configs and manifests; the largest known have some 100 KB
MAX_TABLE_BYTES = 64_000_000  # an index of shards, a tokenizer
_HALF = re.compile(rb"\\u[dD][89abcdefABCDEF]")


def parse(data: bytes) -> Any:
    """JSON in which every key is there once, each number finite, each character whole; raises IrregularError."""
    if data.startswith(LFS_POINTER):
        raise IrregularError("it is a git-lfs pointer, not the file: run git lfs pull")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=unique, parse_constant=_no_constant, parse_float=_finite
        )
        if _HALF.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise IrregularError("half a character (a lone surrogate) can't be written again") from error
    except RecursionError as error:
        raise IrregularError("it must be JSON, not nested too deep") from error
    except IrregularError:
        raise
    except ValueError as error:
        raise IrregularError(f"it must be JSON ({error})") from error
    return value


def with_floats(value: Any) -> Any:
    """JSON as transformers writes it, with the numbers that JSON has no word for: `{"__float__": "Infinity"}`."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: with_floats(inner) for key, inner in value.items()}
    return [with_floats(inner) for inner in value] if isinstance(value, list) else value


def unique(pairs: list[tuple[str, object]]) -> Record:
    """An object's pairs as a dict; raises IrregularError where a key is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise IrregularError(f"each key may occur once, {twice[:80]!r} occurs twice")
    return found


def _no_constant(constant: str) -> float:
    raise IrregularError(f"numbers must be finite, the file has {constant}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise IrregularError(f"numbers must be finite, the file has {text[:40]}")
    return value


def read_json(path: Path, limit: int = MAX_JSON_BYTES, way_out: str = "Download it again.") -> Record:
    """A JSON object from a regular file of at most `limit` bytes; raises CheckpointError with what is wrong, and ends
    with `way_out`."""
    try:
        value = parse(read_regular(path, limit))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except IrregularError as error:
        out = "" if "git lfs" in str(error) else f" {way_out}"
        raise CheckpointError(f"{path.name}: {error}.{out}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name}: must hold one JSON object. {way_out}")
    return value
