"""Which static graphs a variant has, by its `io.json`: read by the runner, made by `export/graph/static.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transform.errors import VerificationError
from transform.modality import IMAGE, TEXT, Modality
from transform.molmoe import tiling

MOST = 1 << 24  # positions that float32 counts exactly
DECODE, DECODE_EMBEDDING = "decode.onnx", "embedding-decode.onnx"


@dataclass(frozen=True)
class Prefill:
    """The graphs for a prompt of at most `sequence` tokens, about an image of one (rows, columns) or about none."""

    tiling: tiling.Tiling | None
    sequence: int

    def file(self, kind: str) -> str:
        """`prefill-2x3.onnx`."""
        return f"{kind}.onnx" if self.tiling is None else f"{kind}-{self.tiling[0]}x{self.tiling[1]}.onnx"


@dataclass(frozen=True)
class StaticPlan:
    """All static graphs of a variant."""

    cache: int  # tokens: prompt and answer
    prefills: tuple[Prefill, ...]

    @property
    def modality(self) -> Modality:
        """Whether there are vision and embedding graphs."""
        return TEXT if self.prefills[0].tiling is None else IMAGE

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all graphs."""
        kinds = (*self.modality.front, "prefill")
        prefills = [prefill.file(kind) for prefill in self.prefills for kind in kinds]
        return (*prefills, *([DECODE_EMBEDDING] if self.modality.sees_images else []), DECODE)

    def as_dict(self) -> dict[str, object]:
        """For the printed plan and io.json."""
        entries = [
            {"tiling": list(p.tiling) if p.tiling else None, "sequence": p.sequence, "prefill": p.file("prefill")}
            | ({kind: p.file(kind) for kind in self.modality.front})
            for p in self.prefills
        ]
        decode = {"decode": DECODE} | ({"embedding": DECODE_EMBEDDING} if self.modality.sees_images else {})
        return {"cache": self.cache, "prefills": entries, "decode": decode}


def read_static(io: Mapping[str, object]) -> StaticPlan | None:
    """The plan that an io.json records, or None where there are no static graphs."""
    spec = io.get("static")
    if spec is None:
        return None
    try:
        if not isinstance(spec, dict):
            raise TypeError(f"{str(spec)[:40]!r} is no object")
        entries = [(_read_tiling(e["tiling"]), _whole(e["sequence"])) for e in spec["prefills"]]
        cache = _whole(spec["cache"])
        if not entries or not all(0 < sequence <= cache <= MOST for _, sequence in entries):
            raise ValueError(f"cache {cache}, prompts {[sequence for _, sequence in entries]}")
        if not isinstance(spec["providers"], dict):
            raise ValueError("no providers")
        return StaticPlan(cache, tuple(Prefill(*entry) for entry in entries))
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"io.json: static is damaged ({error!r}). Export the variant again.") from error


def _read_tiling(value: Any) -> tiling.Tiling | None:
    if value is None:
        return None
    rows, columns = value
    return _whole(rows), _whole(columns)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{str(value)[:40]!r} is no whole number")
    return value
