"""What the sections are given, and what they give back."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from export.run.providers import CUDA, cuda_options
from transform.forms import REFERENCE, Form, form_named

FUSED = form_named("cuda")
PROVIDER = [CUDA, cuda_options(static=False)]


class Row(NamedTuple):
    """One measurement; with a limit it is a check, which NaN doesn't pass."""

    what: str
    value: float | str
    limit: float | None = None
    unit: str = ""

    @property
    def passed(self) -> bool:
        """Facts pass."""
        return self.limit is None or (not isinstance(self.value, str) and bool(self.value <= self.limit))

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file; three digits say all that a measurement knows."""
        value = self.value if isinstance(self.value, str) else float(f"{self.value:.3g}")
        if isinstance(value, float) and not np.isfinite(value):
            value = str(value)  # JSON has no word for it
        entry: dict[str, Any] = {"what": self.what, "value": value}
        if self.limit is not None:
            entry |= {"limit": self.limit, "passed": self.passed}
        return entry | ({"unit": self.unit} if self.unit else {})


class NotAvailableError(Exception):
    """A section has nothing to run here; no failure."""


@dataclass(frozen=True)
class Context:
    """`work` is kept between the sections of a run. Without `cuda` sizes are tiny and all runs on the CPU."""

    cuda: bool
    work: Path

    @property
    def provider(self) -> str:
        """The word of --provider."""
        return "cuda" if self.cuda else "cpu"

    @property
    def threads(self) -> int:
        """Of onnxruntime; one where only the script is tested."""
        return 0 if self.cuda else 1

    @property
    def form(self) -> str:
        """The form that a whole model is exported in."""
        return self.row.name

    @property
    def row(self) -> Form:
        """The same as a row."""
        return FUSED if self.cuda else REFERENCE


def open_graph(path: Path, ctx: Context, form: Form = FUSED) -> Any:
    """A session on the CUDA device; without one, numpy computes what a device would."""
    from export.numpy_run import NumpySession
    from export.run.session import open_session
    from export.run.session_options import session_options

    if not ctx.cuda:
        return NumpySession(path)
    return open_session(path, session_options(form), (PROVIDER,))


def attempted(what: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows of a part, and a failed one where it raises: the parts behind it are tried all the same."""
    try:
        yield from rows
    except NotAvailableError:
        raise
    except Exception as error:  # whatever goes wrong is the measurement
        yield Row(what, f"{type(error).__name__}: {' '.join(str(error).split())}"[:400], 0)


def load_libraries() -> None:
    """Let onnxruntime find the CUDA libraries that pip installed with torch."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
