"""Figures by matplotlib as SVG or PNG: the same values give the same bytes. Needs the extra [plot].

Colours are told apart by everyone (Okabe and Ito).
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from importance.atomic import write_atomically
from transform.errors import KnobcastError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")
BLUE, ORANGE, GREEN, RED, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#000000"


class PlotError(KnobcastError):
    """A plot that can't be drawn: matplotlib is missing, or the file's name says no format."""


def check_format(path: Path) -> None:
    """Refuse a name that says neither SVG nor PNG."""
    if path.suffix.lower() not in FORMATS:
        raise PlotError(f"a plot is {' or '.join(FORMATS)} by its name, got {path.name!r}. Choose another name.")


def require_matplotlib() -> None:
    """Refuse where it is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise PlotError(
            f'a plot needs the extra [plot], which isn\'t complete here ({error}). Run pip install -e ".[plot]".'
        ) from error


@contextmanager
def figure(width: float, height: float) -> Iterator["Figure"]:
    """An empty figure of so many inches, within the settings that make it the same twice."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "knobcast", "text.parse_math": False}):
        yield Figure(figsize=(width, height), layout="constrained")


def save(drawn: "Figure", path: Path, force: bool = False) -> None:
    """Write a figure by its name, inside `figure`; an existing file is refused unless `force`."""
    buffer = io.BytesIO()
    kind = path.suffix.lower().removeprefix(".")
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    drawn.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    write_atomically(path, buffer.getvalue(), force)
