"""What a whole model gives, with one of its blocks in memory at a time.

A prompt passes one-block models in turn. Each embeds it as always; then the stream that left the block before takes
the embeddings' place, so what a model does between embedding, blocks and head is done once, where it belongs. Behind
the last block norm and head give the whole model's logits.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from export.gate.probe import MIN_MARGIN, PLAIN, SEEDS, Outputs, margins, prompt_length, routing_of, text_probe
from transform.architectures.graph_facts import Routing
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.runtime import find_decoder, find_routers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Keywords = dict[str, object]
CANDIDATES = 4  # of the seeds: one alone may meet an expert choice that float32 can't decide


class Stream:
    """One prompt's way; `ids` [1, s], `routing`: how the routers choose."""

    def __init__(self, ids: Array, routing: Routing | None = PLAIN) -> None:
        self.ids, self.routing = ids, routing
        self.logits: torch.Tensor | None = None  # [1, s, V] of the blocks so far
        self._hidden: torch.Tensor | None = None  # [1, s, d] that left the last block
        self._gaps = torch.full((ids.shape[1],), torch.inf)  # per token, the smallest of all routers

    @property
    def decided(self) -> int:
        """How many first tokens no undecidable expert choice has reached."""
        small = (self._gaps < MIN_MARGIN).nonzero()
        return int(small[0]) if len(small) else self.ids.shape[1]

    def through(self, model: "PreTrainedModel") -> None:
        """Pass the next block, the only one of `model`."""
        block = find_decoder(model).layers[0]
        handles = [router.register_forward_hook(self._look) for router, _ in find_routers(model)]
        handles.append(block.register_forward_pre_hook(self._enter, with_kwargs=True))
        handles.append(block.register_forward_hook(self._leave))
        try:
            with torch.no_grad():
                self.logits = model(input_ids=torch.from_numpy(self.ids)).logits
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, _: object, args: tuple[object, ...], kwargs: Keywords) -> tuple[tuple[object, ...], Keywords]:
        if self._hidden is None:
            return args, kwargs
        if args:
            return (self._hidden, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self._hidden}

    def _leave(self, _block: object, _inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        self._hidden = output if isinstance(output, torch.Tensor) else output[0]

    def _look(self, router: torch.nn.Module, _inputs: object, outputs: Outputs) -> None:
        self._gaps = torch.minimum(self._gaps, margins(router, outputs, self.routing))


def candidates(checkpoint: Checkpoint) -> list[Stream]:
    """Prompts for golden outputs, of which `golden_of` takes one in the end."""
    settings, routing = checkpoint.settings, routing_of(checkpoint)
    length = prompt_length(settings.windows)
    return [Stream(text_probe(settings.vocab, seed, length).ids.numpy(), routing) for seed in SEEDS[:CANDIDATES]]


def golden_of(streams: Sequence[Stream], least: int) -> dict[str, Array]:
    """`ids` and `logits` of the stream with the most decided tokens, cut behind them; none where there are fewer than
    `least`. Causality keeps what is cut off from the rest."""
    best = max(streams, key=lambda stream: stream.decided, default=None)
    if best is None or best.decided < least or best.logits is None:
        return {}
    return {"ids": best.ids[:, : best.decided], "logits": best.logits[:, : best.decided].numpy()}
