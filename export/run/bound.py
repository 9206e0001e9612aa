"""Decode with everything left on the device: io-binding, so that the cache never passes through the host.

The same calls on the CPU and on a GPU. What comes back to the host per call is one row of logits.
b is 1, s prompt tokens, V vocabulary, d width, t kept image features.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from export.run.graph_facts import FLOAT, FLOAT16
from export.run.graphs import Graphs, dtype_of, fitted
from export.run.last_row import INPUT, OUTPUT, last_row_model
from export.run.load_errors import shortened
from export.run.session import RunError
from transform.arrays import Array

if TYPE_CHECKING:
    from onnxruntime import OrtValue

    Fed: TypeAlias = Array | OrtValue  # from the host, or from where it is
SPARE = 256  # tokens that a shared cache has room for beyond those that it is made for
_KINDS: dict[Any, int] = {np.float32: FLOAT, np.float16: FLOAT16}


class Bound:
    """One sequence over a variant's graphs: `see` its picture, `prefill` its prompt, then `decode` token by token."""

    def __init__(self, graphs: Graphs) -> None:
        self.graphs = graphs
        self.device = "cpu" if graphs.provider == "cpu" else "cuda"
        self._features: Any = None
        self._cache: dict[str, Fed] = dict(graphs.empty_cache(1))
        self._last = _last_row(graphs)
        self.length = self._room = 0

    def see(self, images: Array, masks: Array, feature_index: Array) -> None:
        """[n, 576, 588] crops, their masks [n, 576] and the features to keep [t]: kept on the device."""
        feed = {"images": images, "image_masks": masks, "feature_index": feature_index}
        vision = self.graphs.vision
        self._features = self._run(vision, fitted(vision, feed))["image_features"]

    def show(self, other: "Bound") -> None:
        """The picture that another sequence over the same graphs has seen and not yet left behind."""
        self._features = other._features

    def prefill(self, ids: Array) -> Array:
        """[1, s] ids -> logits [V] of the last one."""
        return self._step(ids)

    def decode(self, token: int) -> Array:
        """One more token -> logits [V] after it."""
        self._features = None  # they belong to the prompt
        return self._step(np.array([[token]], np.int64))

    def _step(self, ids: Array) -> Array:
        held, self.length = self.length, self.length + ids.shape[1]
        if shared := self.graphs.shares_cache and held > 0:
            self._make_room(held)
        feed: dict[str, Fed] = {"attention_mask": np.ones((1, self.length), np.int64), **self._cache}
        modality = self.graphs.modality
        feed[modality.decoder_input] = self._embed(ids) if modality.sees_images else ids
        into = {name.replace("past_key_values.", "present."): value for name, value in self._cache.items()}
        found = self._run(self.graphs.text, feed, into if shared else {})
        logits = found.pop("logits")
        if not shared:  # a shared one stays what it is, and only its own values keep their arrays alive
            self._cache = {name.replace("present.", "past_key_values."): value for name, value in found.items()}
        if logits.shape()[1] > 1:
            logits = self._run(self._last, {INPUT: logits})[OUTPUT]
        return logits.numpy().reshape(-1)

    def _make_room(self, held: int) -> None:
        """Where a shared cache is full: buffers for all tokens and SPARE more; the `held` ones are copied."""
        from onnxruntime import OrtValue

        if self.length <= self._room:
            return
        self._room = self.length + SPARE
        for name, value in self._cache.items():
            old = value if isinstance(value, np.ndarray) else value.numpy()
            batch, heads, _, width = old.shape
            new = np.empty((batch, heads, self._room, width), old.dtype)
            new[:, :, :held] = old[:, :, :held]
            self._cache[name] = OrtValue.ortvalue_from_numpy(new)

    def _embed(self, ids: Array) -> Any:
        embedding = self.graphs.embedding
        feed: dict[str, Fed] = {"input_ids": ids, "image_features": self._features}
        if self._features is None:
            width = embedding.get_outputs()[0].shape[-1]
            feed |= fitted(embedding, {"image_features": np.zeros((0, width))})
        return self._run(embedding, feed)["inputs_embeds"]

    def _run(
        self, session: Any, feed: "Mapping[str, Fed]", into: "Mapping[str, Fed]" = MappingProxyType({})
    ) -> "dict[str, OrtValue]":
        """Arrays are taken from the host, values from where they are; all outputs stay on the device, those of `into`
        in its values."""
        binding = session.io_binding()
        for name, value in feed.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        names = [output.name for output in session.get_outputs()]
        for name in names:
            if name in into:
                binding.bind_ortvalue_output(name, into[name])
            else:
                binding.bind_output(name, self.device)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime has a dozen exception types without a common base
            raise RunError(
                f"The graphs must take what they are fed, such as ids that the embedding has: {shortened(error)}. "
                "Export the variant again, with the tokenizer that belongs to it."
            ) from error
        binding.synchronize_outputs()
        return dict(zip(names, binding.get_outputs(), strict=True))


def _last_row(graphs: Graphs) -> Any:
    """The session that cuts the last row, on the decoder's own provider."""
    import onnxruntime

    logits = next(output for output in graphs.text.get_outputs() if output.name == "logits")
    model = last_row_model(_KINDS[dtype_of(logits)])
    cuda = [(name, options) for name, options in map(tuple, graphs.providers) if name != "TensorrtExecutionProvider"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=cuda, enable_fallback=0)
