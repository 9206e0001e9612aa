"""What a model does around its blocks that no block knows by itself: scales, and how far each block attends.

The engine does the same: embeddings are multiplied before the first block, logits divided behind the head, and a block
with a window gets a mask of its own.  Legend: B rows, Q queries, K keys, d width, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from importance.calling import additive
from transform.architectures.read import known_model_types, read_architecture
from transform.architectures.windows import KINDS, MOST, WINDOW, windows_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

SLIDING, CHUNKED = "sliding_attention", "chunked_attention"  # of `layer_types`


@dataclass(frozen=True)
class Around:
    """`embedding`: what embeddings are multiplied with; `logits`: what logits are divided by; `windows`: of each block,
    how many tokens it attends to, its own among them, None: all before it."""

    windows: tuple[int | None, ...]
    embedding: float = 1.0
    logits: float = 1.0

    def entering(self, hidden: Tensor) -> Tensor:
        """Embeddings [B, S, d] as the first block gets them."""
        return hidden if self.embedding == 1 else hidden * self.embedding

    def leaving(self, logits: Tensor) -> Tensor:
        """What the head gives [.., V], as the model returns it."""
        return logits if self.logits == 1 else logits / self.logits


def around(config: "PreTrainedConfig | None", layers: int) -> Around:
    """Of a decoder with `layers` blocks, by its config as transformers completes it."""
    said: Mapping[str, object] = {} if config is None else config.to_dict()
    longest = said.get("max_position_embeddings")
    most = longest if type(longest) is int else MOST
    windows = tuple(None if size is None or size >= most else size for size in _windows(said, layers))

    def scale(key: str) -> float:
        value = said.get(key)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else 1.0

    return Around(windows, scale("embedding_multiplier"), scale("logits_scaling"))


def attends_locally(config: "PreTrainedConfig | None") -> bool:
    """Whether some block attends to the last tokens alone, or to those of its chunk: there padding takes a place."""
    if config is None:
        return False
    kinds = getattr(config, "layer_types", None) or ()
    return CHUNKED in kinds or any(around(config, int(getattr(config, "num_hidden_layers", 1))).windows)


def _windows(said: Mapping[str, object], layers: int) -> tuple[int | None, ...]:
    """As the family has them; of a model without one, by the names that most have."""
    model_type = said.get("model_type")
    if model_type in known_model_types():
        family = read_architecture(str(model_type))
        return windows_of(said, layers, family.window, family.switch, family.reads_kinds)
    kinds, size = said.get(KINDS), said.get(WINDOW)
    slides = [str(kind) == SLIDING for kind in kinds] if isinstance(kinds, list) else [True] * layers
    return tuple(size if slide and type(size) is int and size > 0 else None for slide in slides)


@dataclass(eq=False)
class Masks:
    """Additive masks of one set of queries and keys, one per window. `allowed` [B, Q, K], True where a query sees a key
    if no window keeps it from that; `queries` [B, Q] and `keys` [B, K]: their positions, which count along everything
    that a token sees."""

    allowed: Tensor
    queries: Tensor
    keys: Tensor
    dtype: "torch.dtype"
    _made: dict[int | None, Tensor] = field(default_factory=dict)

    def of(self, window: int | None) -> Tensor:
        """[B, 1, Q, K]."""
        if window not in self._made:
            near = self.allowed
            if window is not None:
                near = near & (self.queries[:, :, None] - self.keys[:, None, :] < window)
            self._made[window] = additive(near, self.dtype)
        return self._made[window]
