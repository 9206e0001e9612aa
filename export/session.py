"""onnxruntime sessions as the variant's io.json asks for them: named providers, no folding, no prepacking. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transform.errors import VerificationError


def open_session(
    path: Path, options: Mapping[str, str], providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 0
) -> Any:
    """An InferenceSession; `options` are session config entries."""
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 3
    session_options.intra_op_num_threads = threads
    for key, value in options.items():
        session_options.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(str(path), session_options, providers=list(providers))
    except Exception as error:  # onnxruntime has a dozen exception types without a common base
        reason = str(error).strip().splitlines()[0][:300]
        raise VerificationError(
            f"{path.name}: onnxruntime {onnxruntime.__version__} could not load it: {reason}. Export the variant again."
        ) from error
