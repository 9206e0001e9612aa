"""How many bytes a graph reads for a weight, by the form that a planned checkpoint will be stored in."""

import math
from dataclasses import dataclass

from transform.checkpoint import Checkpoint, Tensor
from transform.forms import Form
from transform.knobs import DTYPES
from transform.packed_layout import BLOCK, MATRICES
from transform.safetensors_header import ITEM_BYTES

MATRIX_SCALE, EXPERT_SCALE = ITEM_BYTES["F32"], ITEM_BYTES["F16"]  # bytes of a scale, as `packed_layout.py` stores it


@dataclass(frozen=True)
class Stored:
    """A planned checkpoint and the form of its graphs."""

    checkpoint: Checkpoint
    form: Form

    @property
    def value(self) -> int:
        """Bytes of a number that the graphs compute with."""
        return ITEM_BYTES[DTYPES[self.form.compute]]

    def shape(self, role: str, i: int = 0, j: int = 0) -> tuple[int, ...]:
        """Of a role's tensor."""
        return self.checkpoint.tensor(role, i=i, j=j).shape

    def read(self, role: str, i: int = 0, j: int = 0) -> int:
        """Bytes of traffic for using a role's tensor once: codes and scales, or numbers, which are widened or narrowed
        at each use where the graph computes in another type (one copy written and read more)."""
        tensor = self.checkpoint.tensor(role, i=i, j=j)
        if self._packed(role):
            return self._codes(tensor, EXPERT_SCALE if role.startswith("expert.") else MATRIX_SCALE)
        count = math.prod(tensor.shape)
        return count * ITEM_BYTES[tensor.dtype] + 2 * count * self.value * self.casts(role, i, j)

    def rows(self, role: str, count: int) -> int:
        """Bytes of traffic for looking up `count` rows of a table."""
        tensor = self.checkpoint.tensor(role)
        return count * tensor.shape[1] * (ITEM_BYTES[tensor.dtype] + self.value)

    def casts(self, role: str, i: int = 0, j: int = 0) -> int:
        """1 where a role's tensor is cast before each use, else 0."""
        tensor = self.checkpoint.tensor(role, i=i, j=j)
        return int(not self._packed(role) and tensor.dtype != DTYPES[self.form.compute])

    def _packed(self, role: str) -> bool:
        return self.form.bits is not None and (role in MATRICES or role.startswith("expert."))

    def _codes(self, tensor: Tensor, scale: int) -> int:
        assert self.form.bits is not None
        block = BLOCK if tensor.pack is None else tensor.pack.block
        rows, columns = tensor.shape
        return rows * -(-columns // block) * (block * self.form.bits // 8 + scale)
