"""What a stage of a workload consists of: its operators by kind, in numbers that any device can be asked about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Part:
    """One kind of operator in a stage.

    flops: of its matrix products, 2 per multiply and add. weights: bytes of weights that are read. activations: bytes
    of everything else that is read or written. operators: how many are called. Expectations, hence not whole numbers,
    where routers decide.
    """

    name: str
    flops: int = 0
    weights: float = 0.0
    activations: float = 0.0
    operators: float = 0.0

    @property
    def bytes(self) -> float:
        """Of memory traffic."""
        return self.weights + self.activations


Stage: TypeAlias = tuple[Part, ...]


def merged(parts: Sequence[Part]) -> Stage:
    """Parts of one name added up, in the order of their first."""
    names = list(dict.fromkeys(part.name for part in parts))
    groups = [[part for part in parts if part.name == name] for name in names]
    return tuple(
        Part(
            group[0].name,
            sum(part.flops for part in group),
            sum(part.weights for part in group),
            sum(part.activations for part in group),
            sum(part.operators for part in group),
        )
        for group in groups
    )


def flops(stage: Stage) -> int:
    """Of all parts."""
    return sum(part.flops for part in stage)
