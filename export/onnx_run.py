"""Run a variant's graphs with onnxruntime and numpy alone. No torch.

b batch, s new tokens, p cached tokens, d width, V vocabulary, L blocks, t kept image features.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from export.session import open_session
from transform.checkpoint import read_json
from transform.errors import VerificationError

Array = np.ndarray[Any, Any]


class Graphs:
    """The sessions of one variant directory, opened when first needed."""

    def __init__(
        self,
        directory: Path,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
        threads: int = 0,
        text: str = "text.onnx",
    ) -> None:
        self.directory, self.providers, self.threads, self._text = directory, providers, threads, text
        self.io = read_json(directory / "io.json")
        if not isinstance(self.io.get("session_options"), dict):
            raise VerificationError(f"{directory}: io.json must hold session_options. Export the variant again.")

    def _open(self, name: str) -> Any:
        return open_session(self.directory / name, self.io["session_options"], self.providers, self.threads)

    @cached_property
    def text(self) -> Any:
        """The decoder."""
        return self._open(self._text)

    @cached_property
    def embedding(self) -> Any:
        """Token ids and image features to embeddings; only image models have it."""
        return self._open("embedding.onnx")

    @cached_property
    def vision(self) -> Any:
        """Crops to image features; only image models have it."""
        return self._open("vision.onnx")

    @property
    def multimodal(self) -> bool:
        """Whether the variant sees images."""
        return (self.directory / "vision.onnx").is_file()

    def empty_cache(self, batch: int) -> dict[str, Array]:
        """A cache of no tokens."""
        cache = {}
        for given in self.text.get_inputs():
            if given.name.startswith("past_key_values."):
                _, heads, _, width = given.shape
                cache[given.name] = np.zeros((batch, heads, 0, width), np.float32)
        return cache

    def image_features(self, images: Array, masks: Array, feature_index: Array) -> Array:
        """[n, 576, 588] crops, their masks [n, 576] and the features to keep [t] -> [t, d]."""
        feed = {"images": images, "image_masks": masks, "feature_index": feature_index.astype(np.int64)}
        return self.vision.run(["image_features"], feed)[0]

    def embed(self, input_ids: Array, features: Array | None = None) -> Array:
        """[b, s] ids and [t, d] features -> [b, s, d]; feature j is added to the j-th image-patch token."""
        if features is None:
            features = np.zeros((0, self.embedding.get_outputs()[0].shape[-1]), np.float32)
        return self.embedding.run(["inputs_embeds"], {"input_ids": input_ids, "image_features": features})[0]

    def step(self, inputs: Array, mask: Array, cache: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        """One decoder call: ids [b, s] (or embeddings [b, s, d]), mask [b, p + s] -> logits [b, s, V], new cache."""
        if self.multimodal and inputs.ndim == 2:
            inputs = self.embed(inputs)
        name = "inputs_embeds" if self.multimodal else "input_ids"
        outputs = [output.name for output in self.text.get_outputs()]
        values = self.text.run(outputs, {name: inputs, "attention_mask": mask, **cache})
        found = dict(zip(outputs, values, strict=True))
        logits = found.pop("logits")
        return logits, {name.replace("present.", "past_key_values."): value for name, value in found.items()}

    def run_text(self, probe: Any) -> dict[str, Array]:
        """Logits for the gate's text probe: prefill, decode with the cache, a right-padded batch."""
        ids = probe.ids.numpy()
        prompt, total = probe.batch.shape[1], ids.shape[1]
        prefill, cache = self.step(ids[:, :prompt], np.ones((1, prompt), np.int64), self.empty_cache(1))
        steps = []
        for at in range(prompt, total):
            logits, cache = self.step(ids[:, at : at + 1], np.ones((1, at + 1), np.int64), cache)
            steps.append(logits)
        padded, _ = self.step(probe.batch.numpy(), probe.mask.numpy(), self.empty_cache(2))
        return {
            "prefill": prefill,
            "decode": np.concatenate(steps, 1),
            "padded": np.concatenate((padded[0], padded[1, : probe.short])),
        }
