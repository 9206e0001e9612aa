"""The graph that transformers' own exporter makes of the same variant: every length dynamic, experts as grouped_mm.

It is the decoder alone. For image models the language half is exported with embeddings as its input; the embeddings
come from the variant's own graphs, outside the clock for the picture. onnxruntime's default session options.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.bench.job import BenchJob
from export.bench.workload import Workload
from export.run.graphs import Graphs, dtype_of
from transform.arrays import Array

if TYPE_CHECKING:
    from onnxruntime import OrtValue
    from torch.onnx import ONNXProgram
    from transformers import PreTrainedModel

GRAPH, FEATURES = "model.onnx", "features.npy"
PAST = ("input.cache.", "input.past_key_values.")  # the name is the model's argument's
SAMPLE, CACHED = 5, 3  # lengths that the export is traced with: neither is 0 or 1, which torch.export makes constants


def export_graph(job: BenchJob, target: Path) -> None:
    """Write the graph and its data to `target`."""
    import torch

    from export.bench.engine_torch import loaded
    from transform.load import quiet_transformers

    quiet_transformers()
    torch.set_num_threads(job.threads)
    with loaded(job, "grouped_mm") as model:
        _exported(model).save_pretrained(target)


def _exported(model: "PreTrainedModel") -> "ONNXProgram":
    import torch
    from transformers import DynamicCache
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    from transform.molmoe.compatibility import CACHE

    name, given = "input_ids", torch.arange(2, 2 + SAMPLE)[None]
    if hasattr(model, "embed"):
        name, given = "inputs_embeds", model.embed(given).detach()
        model = language_half(model)
    auto, layers = torch.export.Dim.AUTO, model.config.num_hidden_layers
    with torch.no_grad():
        past = model(**{name: given[:, :CACHED], CACHE: DynamicCache(config=model.config)})[CACHE]
    sample = {
        name: given,
        "attention_mask": torch.ones(1, CACHED + SAMPLE, dtype=torch.int64),
        CACHE: past,
    }
    # the lengths alone, as transformers recommends: batch, heads and widths are constants
    shapes = {name: {1: auto}, "attention_mask": {1: auto}, CACHE: [{2: auto}] * (2 * layers)}
    return OnnxExporter().export(model, sample, OnnxConfig(dynamic=True, dynamic_shapes=shapes))


def language_half(model: "PreTrainedModel") -> "PreTrainedModel":
    """transformers' language model over an image model's decoder and head: the very modules, no copy."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    decoder = model.get_decoder()
    with torch.device("meta"):
        half = MODEL_FOR_CAUSAL_LM_MAPPING[type(decoder.config)](decoder.config)
    half.model, half.lm_head = decoder, model.lm_head
    return half.eval()


class Engine:
    """The exported decoder in onnxruntime, its cache bound to the device."""

    sees = False

    def __init__(self, job: BenchJob, workload: Workload) -> None:
        import onnxruntime

        self.runtime, self.job, self.workload = onnxruntime, job, workload
        self.folder = Path(job.scratch)
        self.front = Graphs(Path(job.directory), job.provider, job.threads, job.graph)
        self.device = job.device
        self.features: Array | None = None
        self.session: onnxruntime.InferenceSession
        self.cache: dict[str, Array | OrtValue] = {}
        self.length = 0

    def prepare(self) -> None:
        """Export, and look at the picture; in a process of its own, so that neither's memory counts as the graph's."""
        export_graph(self.job, self.folder)
        if self.workload.picture:
            picture = self.workload.picture
            features = self.front.image_features(*(picture[n] for n in ("images", "image_masks", "feature_index")))
            np.save(self.folder / FEATURES, features)

    def load(self) -> None:
        """Open the session, and the embedding's for image models."""
        options = self.runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.job.threads
        self.session = self.runtime.InferenceSession(
            str(self.folder / GRAPH), options, providers=[tuple(pair) for pair in self.front.providers]
        )
        if self.front.modality.sees_images:
            _ = self.front.embedding
            self.features = np.load(self.folder / FEATURES)

    def start(self) -> None:
        """An empty cache."""
        self.cache, self.length = {}, 0
        for given in self.session.get_inputs():
            if given.name.startswith(PAST):
                _, heads, _, width = (int(size) if str(size).isdecimal() else 0 for size in given.shape)
                self.cache[given.name] = np.zeros((1, heads, 0, width), dtype_of(given))

    def prefill(self) -> int:
        """The first new token."""
        return self._next(self.workload.ids, self.features)

    def step(self, token: int) -> int:
        """The next one."""
        return self._next(np.array([[token]], np.int64), None)

    def _next(self, ids: Array, features: Array | None) -> int:
        self.length += ids.shape[1]
        feed: dict[str, Array | OrtValue] = {"attention_mask": np.ones((1, self.length), np.int64), **self.cache}
        modality = self.front.modality
        feed[modality.decoder_input] = self.front.embed(ids, features) if modality.sees_images else ids
        binding = self.session.io_binding()
        for name, value in feed.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        names = [output.name for output in self.session.get_outputs()]
        for name in names:
            binding.bind_output(name, "cpu" if name == "logits" else self.device)
        self.session.run_with_iobinding(binding)
        found = dict(zip(names, binding.get_outputs(), strict=True))
        logits = found.pop("logits").numpy()
        self.cache = {name.replace("output.", "input.", 1): value for name, value in found.items()}
        return int(logits[0, -1].argmax())
