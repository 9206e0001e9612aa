"""What `--grid` names -> axes and workloads: the grammar of `--family` with more axes, a preset, or a TOML file.

    k=1,2,4,6,8 blocks=8,10,12,14,16 tokens=288,432,1008 form=cpu,int4 dtype=source,float16
    core27                     grids/core27.toml of this package
    mine.toml                  [grid] k = [1, 2], blocks = [8, 16]; [workload.qa] prompt = 32, new = 8

No torch.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.family.grid import AXES, parse_axes
from transform.errors import KnobError
from transform.regular_file import IrregularError, read_regular
from transform.strict_json import Record

SWEPT = (*AXES, "tokens", "form", "dtype")
EXAMPLE = "k=2,4,8 blocks=12,16 tokens=288,432"
PRESETS = Path(__file__).parent / "grids"
MOST_BYTES = 1 << 20
_TABLES = ("about", "grid", "workload")


@dataclass(frozen=True)
class Grid:
    """`text`: the axes in one line; `workload`: tables of the file as they are, None where it has none."""

    text: str
    axes: Mapping[str, list[str]]
    workload: Record | None
    where: str


def preset_grids() -> tuple[str, ...]:
    """The names that `--grid` takes besides axes and files."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def read_grid(words: str) -> Grid:
    """The grid that `words` are or name; raises KnobError."""
    text = words.strip()
    if "=" in text.split(" ")[0] or not text:
        return Grid(" ".join(text.split()), parse_axes(text, SWEPT, EXAMPLE), None, "--grid")
    if text in preset_grids():
        return _from_file(PRESETS / f"{text}.toml", text)
    if text.endswith(".toml"):
        return _from_file(Path(text), Path(text).name)
    raise KnobError(
        f"--grid is axes as in {EXAMPLE!r}, one of {', '.join(preset_grids())}, or a .toml file; got {text[:80]!r}."
    )


def read_toml(path: Path) -> Record:
    """A TOML file; raises KnobError where it can't be read."""
    try:
        return tomllib.loads(read_regular(path, MOST_BYTES).decode("utf-8"))
    except FileNotFoundError as error:
        raise KnobError(f"{path}: there is no such file. Give the path of a .toml file.") from error
    except (OSError, IrregularError, ValueError) as error:
        raise KnobError(f"{path} must be a TOML file: {str(error)[:200]}. Correct it.") from error


def _from_file(path: Path, where: str) -> Grid:
    raw = read_toml(path)
    if unknown := sorted(raw.keys() - set(_TABLES)):
        raise KnobError(
            f"{where}: a grid's file has the tables {', '.join(_TABLES)}, got {unknown[0][:40]!r}. Correct its name."
        )
    table = raw.get("grid")
    if not isinstance(table, dict) or not table:
        raise KnobError(f"{where}: [grid] must name at least one axis, such as k = [1, 2, 4]. Add it.")
    words = []
    for axis, values in table.items():
        if not isinstance(values, list) or not values or not all(type(v) in (int, str) for v in values):
            raise KnobError(
                f"{where}: [grid] {axis[:40]} must be a list of numbers or words such as [1, 2], got {values!r:.60}."
            )
        words.append(f"{axis}={','.join(map(str, values))}")
    text = " ".join(words)
    workload = raw.get("workload")
    if workload is not None and not isinstance(workload, dict):
        raise KnobError(f"{where}: workload must be tables [workload.NAME], got {workload!r:.60}.")
    return Grid(text, parse_axes(text, SWEPT, EXAMPLE), workload, where)
