"""What runtimes would open because a variant says so: `io.json` and `genai_config.json` name graphs beside them alone.

A tokenizer is one more program that they run.

Both have options that make onnxruntime write where they say, and onnxruntime-genai's can have it load a library.
"""

from collections.abc import Iterator
from pathlib import Path

from export.files.integrity import is_plain
from export.run.io_file import FILE, names_a_file, read_io
from transform.errors import CheckpointError, VerificationError
from transform.strict_json import read_json
from transform.tokenizer_file import check_growth

_GENAI = "genai_config*.json"


def check_runtime_files(directory: Path) -> None:
    """Raises VerificationError for an `io.json` that is none and for options that name files, CheckpointError for a
    tokenizer that makes short texts long."""
    if (directory / FILE).is_file():
        read_io(directory)
    check_growth(directory)
    for path in sorted(directory.glob(_GENAI)):
        try:
            told = read_json(path, way_out="Export the variant again.")
        except CheckpointError as error:
            raise VerificationError(str(error)) from error
        for key, value in _entries(told):
            if key.endswith("filename"):
                if not isinstance(value, str) or not is_plain(value) or "/" in value:
                    raise _refused(path.name, f"{key[:60]} must name a file beside it, got {str(value)[:60]!r}")
            elif names_a_file(key):
                raise _refused(path.name, f"it must have no option that names a file, it has {key[:60]!r}")


def _entries(value: object) -> Iterator[tuple[str, object]]:
    """Every key at any depth, with its value."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield str(key), inner
        yield from _entries(inner)
    for inner in value if isinstance(value, list) else ():
        yield from _entries(inner)


def _refused(name: str, why: str) -> VerificationError:
    return VerificationError(f"{name}: {why}. Export the variant again.")
