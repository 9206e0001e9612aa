"""PyTorch with the variant's own weights: float32, or what the graphs compute in where both run on a GPU.

`eager` loops over experts, `grouped_mm` sorts tokens by expert into one grouped product; both are transformers' own.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from export.bench.job import BenchJob
from export.bench.workload import Workload
from transform.load import load_model, quiet_transformers
from transform.molmoe.compatibility import CACHE
from transform.runtime import knobs_at_run_time

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


@contextmanager
def loaded(job: BenchJob, implementation: str) -> "Iterator[PreTrainedModel]":
    """The model with the named experts; inside the `with` block a family's member has its blocks and k."""
    model = load_model(Path(job.directory), job.dtype, experts_implementation=implementation)
    chosen = model.get_decoder().config._experts_implementation
    if chosen != implementation:
        raise ValueError(f"the experts must run as {implementation}, transformers chose {chosen}.")
    if job.blocks_kept is None or job.top_k is None:
        yield model
        return
    with knobs_at_run_time(model, job.blocks_kept, job.top_k):
        yield model


class Engine:
    """One model; a sequence is its cache."""

    sees = True

    def __init__(self, job: BenchJob, workload: Workload) -> None:
        torch.set_num_threads(job.threads)
        quiet_transformers()
        self.job, self.workload = job, workload
        self.device = job.device
        self.opened = ExitStack()  # never closed: the process ends with its model
        self.model: PreTrainedModel
        self.cache: Cache | None = None
        self.features: torch.Tensor | None = None
        self.ids = torch.from_numpy(workload.ids).to(self.device)

    def load(self) -> None:
        """Read the weights."""
        self.model = self.opened.enter_context(loaded(self.job, self.job.name)).to(self.device)

    def start(self) -> None:
        """Forget the last sequence."""
        self.cache = self.features = None

    @torch.inference_mode()
    def see(self) -> None:
        """Image features [1, n, 144, d]."""
        picture = self.workload.picture
        images, masks = (torch.from_numpy(picture[n][None]).to(self.device) for n in ("images", "image_masks"))
        self.features = self.model.get_image_features(images, masks)
        if self.device == "cuda":
            torch.cuda.synchronize()

    @torch.inference_mode()
    def prefill(self) -> int:
        """The first new token; logits of the last position alone, as generate() asks for them."""
        if self.features is None:
            return self._next(input_ids=self.ids)
        embeds = self.model.embed(self.ids)
        index = torch.from_numpy(self.workload.picture["image_input_idx"]).to(self.device)
        _, crop, feature = (index >= 0).nonzero(as_tuple=True)
        where = (torch.zeros_like(crop), index[0, crop, feature].long())
        embeds = embeds.index_put(where, self.features[0, crop, feature].to(embeds), accumulate=True)
        return self._next(inputs_embeds=embeds)

    @torch.inference_mode()
    def step(self, token: int) -> int:
        """The next one."""
        return self._next(input_ids=torch.tensor([[token]], device=self.device))

    def _next(self, **given: torch.Tensor) -> int:
        found = self.model(**given, **{CACHE: self.cache}, use_cache=True, logits_to_keep=1)
        self.cache = found[CACHE]
        return int(found.logits[0, -1].argmax())
