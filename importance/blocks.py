"""Where the engine's blocks come from: a model in memory here, a checkpoint read block by block in `streaming.py`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor, nn

from importance.around import Around, around
from importance.suited import insist_on_suited
from transform.runtime import find_decoder


class Blocks(Protocol):
    """A decoder in parts. model: the whole, at least without its blocks; around: what it does around them; agreed: what
    `self_check.py` has proven of it; bytes_read: from the checkpoint, so far."""

    model: nn.Module
    layers: int
    around: Around
    bytes_read: int
    agreed: set[str]

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """A block with its weights, for the length of a `with`."""

    def head(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Final norm, output head and what the model makes of its logits: [U, d] -> [U, V]."""

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for positions [B, S]."""

    def plain(self, hidden: Tensor) -> tuple[Tensor, int]:
        """The model's own forward on embeddings [1, n, d]: logits [1, n, V], and how many of its first blocks ran."""


class ResidentBlocks:
    """The blocks of a transformers decoder in memory. Raises ScoringError for a model that the engine gets wrong."""

    bytes_read = 0

    def __init__(self, model: nn.Module) -> None:
        insist_on_suited(model)
        self.model, self.decoder = model, find_decoder(model)
        self.layers = len(self.decoder.layers)
        self.around = around(getattr(self.decoder, "config", None), self.layers)
        self.agreed: set[str] = set()

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """The module itself."""
        return nullcontext(self.decoder.layers[index])

    def head(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """The model's own."""
        own = self.model.get_output_embeddings()
        return nullcontext(lambda hidden: self.around.leaving(own(self.decoder.norm(hidden))))

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's own."""
        cos, sin = self.decoder.rotary_emb(hidden, positions)
        return cos, sin

    def plain(self, hidden: Tensor) -> tuple[Tensor, int]:
        """All blocks."""
        return self.model(inputs_embeds=hidden, use_cache=False).logits, self.layers
