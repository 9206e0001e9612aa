"""Run a variant's graphs with onnxruntime and numpy alone. No torch.

b batch, s new tokens, p cached tokens, d width, V vocabulary, L blocks, t kept image features.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from export.run.graph_facts import read_facts
from export.run.io_file import form_in, read_io
from export.run.picture import GRAPH as PREPROCESS
from export.run.providers import check_providers, own_caches, provider_options
from export.run.session import RunError, open_session
from export.run.signatures import check_decoder, check_embedding, check_preprocess, check_vision
from transform.arrays import Array
from transform.modality import IMAGE, TEXT, Modality
from transform.strict_json import read_json
from transform.tokenizer_file import check_growth

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
SHARING = "com.microsoft::GroupQueryAttention"  # it writes behind the past, or copies it where the present is elsewhere
NARROW = ": its codes are in the order that the CPU's kernels read"


class Graphs:
    """The sessions of one variant directory, opened when first needed.

    `provider` is a key of io.json's `providers`, `threads` 0 takes all cores, `text` names the decoder's file.
    """

    def __init__(self, directory: Path, provider: str = "cpu", threads: int = 0, text: str = "text.onnx") -> None:
        self.directory, self.provider, self.threads, self._text = directory, provider, threads, text
        if not (directory / "io.json").is_file():
            raise RunError(
                f"A variant's graphs run with the io.json beside them: {directory} has none. Give the directory of an "
                "export, or let `knobcast layout` carry the graphs elsewhere."
            )
        self.io = read_io(directory)
        self.form = form_in(self.io)

    @property
    def providers(self) -> list[Any]:
        """[provider, options] in order of preference."""
        known = check_providers(self.io.get("providers") or provider_options(self.form, static=False))
        if self.provider not in known:
            raise RunError(
                f"The provider must be one of {', '.join(known)} for a variant of the {self.form.name} form, got "
                f"{self.provider!r}{NARROW if self.form.bits else ''}. Choose one of them, or export the "
                "variant in another --form."
            )
        return [[name, own_caches(options, self._identity())] for name, options in known[self.provider]]

    def _identity(self) -> str:
        """What tells this variant's weights from all others'; for a changed or unverified one, its place does."""
        manifest = self.directory / "manifest.json"
        files = read_json(manifest).get("files") if manifest.is_file() else None
        sums = files.get("sha256sums") if isinstance(files, dict) else None
        known = sums if isinstance(sums, str) and len(sums) == 64 else str(self.directory.resolve())
        return hashlib.sha256(known.encode()).hexdigest()[:16]

    def _options(self, name: str) -> Mapping[str, str]:
        options, own = self.io["session_options"], self.io.get("vision_session_options")
        return own if name.startswith(("vision", PREPROCESS)) and own is not None else options

    def _open(self, name: str) -> Any:
        stated = self.io.get("onnxruntime_by_graph")
        return open_session(self.directory / name, self._options(name), self.providers, self.threads, stated)

    @cached_property
    def text(self) -> Any:
        """The decoder."""
        return check_decoder(self._text, self._open(self._text), self.modality.decoder_input)

    @cached_property
    def embedding(self) -> Any:
        """Token ids and image features to embeddings; only image models have it."""
        return check_embedding("embedding.onnx", self._open("embedding.onnx"))

    @cached_property
    def vision(self) -> Any:
        """Crops to image features; only image models have it."""
        return check_vision("vision.onnx", self._open("vision.onnx"))

    @cached_property
    def preprocess(self) -> Any:
        """Pixels to crops, on the CPU wherever the others run; only image models have it, and not older ones."""
        options, stated = self._options(PREPROCESS), self.io.get("onnxruntime_by_graph")
        session = open_session(self.directory / PREPROCESS, options, threads=self.threads, stated=stated)
        return check_preprocess(PREPROCESS, session)

    @property
    def modality(self) -> Modality:
        """What the variant sees, by its graphs."""
        return IMAGE if (self.directory / "vision.onnx").is_file() else TEXT

    @cached_property
    def shares_cache(self) -> bool:
        """Whether past and present of the decoder may be one buffer, with room for more tokens than it holds, once it
        holds some."""
        return SHARING in read_facts(self.directory / self._text).operators

    def empty_cache(self, batch: int) -> dict[str, Array]:
        """A cache of no tokens, in the graph's own type."""
        cache = {}
        for given in self.text.get_inputs():
            if given.name.startswith("past_key_values."):
                _, heads, _, width = given.shape
                cache[given.name] = np.zeros((batch, heads, 0, width), dtype_of(given))
        return cache

    def image_features(self, images: Array, masks: Array, feature_index: Array) -> Array:
        """[n, 576, 588] crops, their masks [n, 576] and the features to keep [t] -> [t, d]."""
        feed = {"images": images, "image_masks": masks, "feature_index": feature_index}
        return self.vision.run(["image_features"], fitted(self.vision, feed))[0]

    def embed(self, input_ids: Array, features: Array | None = None) -> Array:
        """[b, s] ids and [t, d] features -> [b, s, d]; feature j is added to the j-th image-patch token."""
        if features is None:
            features = np.zeros((0, self.embedding.get_outputs()[0].shape[-1]), np.float32)
        feed = {"input_ids": input_ids, "image_features": features}
        return self.embedding.run(["inputs_embeds"], fitted(self.embedding, feed))[0]

    def step(self, inputs: Array, mask: Array, cache: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        """One decoder call: ids [b, s] (or embeddings [b, s, d]), mask [b, p + s] -> logits [b, s, V], new cache."""
        if self.modality.sees_images and inputs.ndim == 2:
            inputs = self.embed(inputs)
        name = self.modality.decoder_input
        outputs = [output.name for output in self.text.get_outputs()]
        values = self.text.run(outputs, {name: inputs, "attention_mask": mask, **cache})
        found = dict(zip(outputs, values, strict=True))
        logits = found.pop("logits")
        return logits, {name.replace("present.", "past_key_values."): value for name, value in found.items()}

    def run_text(self, probe: Any) -> dict[str, Array]:
        """Logits for the gate's text probe: prefill, decode with the cache, a padded batch."""
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
            "padded": padded[probe.mask.numpy() == 1],
        }


def dtype_of(value: Any) -> Any:
    """numpy's type for a session's input or output."""
    if value.type not in DTYPES:
        raise RunError(
            f"Inputs and outputs must be of the types {', '.join(DTYPES)}: {value.name} is {value.type}. Export the "
            "variant with --form cpu."
        )
    return DTYPES[value.type]


def fitted(session: Any, feed: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays in the types that the session declares, contiguous."""
    types = {given.name: dtype_of(given) for given in session.get_inputs()}
    return {name: np.ascontiguousarray(value, types[name]) for name, value in feed.items()}


def open_tokenizer(directory: Path) -> Any:
    """The variant's tokenizer."""
    check_growth(directory)
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing more precise
        raise RunError(f"tokenizer.json must be intact: {directory}: {error}. Export it again.") from error
