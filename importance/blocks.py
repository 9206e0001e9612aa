"""Where the engine's blocks come from: a model in memory here, a checkpoint read block by block in `streaming.py`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn

from transform.runtime import find_decoder


class Blocks(Protocol):
    """A decoder in parts. bytes_read: from the checkpoint, so far."""

    layers: int
    bytes_read: int

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """A block with its weights, for the length of a `with`."""

    def head(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Final norm and output head: [U, d] -> logits [U, V]."""

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for positions [B, S]."""


class ResidentBlocks:
    """The blocks of a transformers decoder in memory."""

    bytes_read = 0

    def __init__(self, model: Any) -> None:
        self.model, self.decoder = model, find_decoder(model)
        self.layers = len(self.decoder.layers)

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """The module itself."""
        return nullcontext(self.decoder.layers[index])

    def head(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """The model's own."""
        return nullcontext(lambda hidden: self.model.get_output_embeddings()(self.decoder.norm(hidden)))

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's own."""
        cos, sin = self.decoder.rotary_emb(hidden, positions)
        return cos, sin
