"""How many bytes a graph reads for a weight, by the form that a plan stores it in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from transform.checkpoint import Checkpoint
from transform.experts import in_slabs
from transform.forms import Form
from transform.knobs import DTYPES
from transform.packed_layout import entries
from transform.plan import Plan
from transform.safetensors_header import ITEM_BYTES, Entry

SLABS = ("expert.gate_up", "expert.down_slab")
EXPERT_PARTS = ("gate", "up", "down")
_PAIRS = ("gate_up", "down")  # as `packed_layout.py` stacks a block's experts


@dataclass(frozen=True)
class Stored:
    """A planned checkpoint, its graphs' form, and where codes will lie."""

    plan: Plan

    @property
    def checkpoint(self) -> Checkpoint:
        """As it will be."""
        return self.plan.target

    @property
    def form(self) -> Form:
        """Of its graphs."""
        return self.plan.form

    @property
    def value(self) -> int:
        """Bytes of a number that the graphs compute with."""
        return ITEM_BYTES[DTYPES[self.form.compute]]

    @cached_property
    def _placed(self) -> Mapping[str, Entry]:
        """The entries of a quantised file; none of any other."""
        return {} if self.plan.packing is None else entries(self.checkpoint, self.plan.packing)

    def shape(self, role: str, i: int = 0, j: int = 0) -> tuple[int, ...]:
        """Of a role's tensor."""
        return self.checkpoint.tensor(role, i=i, j=j).shape

    def read(self, role: str, i: int = 0, j: int = 0) -> int:
        """Bytes of traffic for using a role's tensor once: codes and scales, or numbers, which are widened or narrowed
        at each use where the graph computes in another type (one copy written and read more). Not for experts."""
        coded = self._codes(self.checkpoint.name(role, i, j=j))
        if coded:
            return coded
        tensor = self.checkpoint.tensor(role, i=i, j=j)
        count = math.prod(tensor.shape)
        return count * ITEM_BYTES[tensor.dtype] + 2 * count * self.value * self.casts(role, i, j)

    @property
    def head(self) -> str:
        """The role of the output matrix: the embedding's where both are one."""
        checkpoint = self.checkpoint
        return "embedding" if checkpoint.head.name == checkpoint.name("embedding") else "head"

    def read_expert(self, i: int) -> float:
        """The same for all matrices of one expert of block i."""
        count = self.checkpoint.settings.experts_of[i]
        if in_slabs(self.checkpoint, i):
            return sum(self.read(role, i) for role in SLABS) / count
        stacked = sum(self._codes(f"blocks.{i}.experts.{pair}") for pair in _PAIRS)
        if stacked:
            return stacked / count
        return float(sum(self.read(f"expert.{part}", i) for part in EXPERT_PARTS))

    def rows(self, role: str, count: int) -> float:
        """Bytes of traffic for looking up `count` rows of a table."""
        tensor = self.checkpoint.tensor(role)
        rows, width = tensor.shape
        coded = self._codes(tensor.name)
        return count * (coded / rows if coded else width * ITEM_BYTES[tensor.dtype]) + count * width * self.value

    def casts(self, role: str, i: int = 0, j: int = 0) -> int:
        """1 where a role's tensor is cast before each use, else 0."""
        if self._codes(self.checkpoint.name(role, i, j=j)):
            return 0
        return int(self.checkpoint.tensor(role, i=i, j=j).dtype != DTYPES[self.form.compute])

    def expert_casts(self, i: int) -> int:
        """How many matrices of an expert are cast before each use."""
        if in_slabs(self.checkpoint, i):
            return sum(self.casts(role, i) for role in SLABS)
        if self._codes(f"blocks.{i}.experts.{_PAIRS[0]}"):
            return 0
        return sum(self.casts(f"expert.{part}", i) for part in EXPERT_PARTS)

    def _codes(self, stem: str) -> int:
        """Bytes of codes and scales; 0 where there are none."""
        parts = (self._placed.get(f"{stem}.{part}") for part in ("codes", "scales"))
        return sum(part.nbytes for part in parts if part is not None)
