"""Run a variant's static graphs: one sequence, buffers that never move, the cache written in place. No torch.

Everything that a graph reads or writes is allocated and bound once, so that a captured CUDA graph can be replayed: a
call copies its few new numbers into the buffers and runs. Past and present share a buffer. Where a compiler may read
the past after it wrote the present (TensorRT) there are two sets, which change places at every call.

s prompt tokens, d width, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from export.run.graphs import Graphs, dtype_of
from export.run.picture import Crops
from export.run.session import RunError
from export.run.static_plan import DECODE, DECODE_EMBEDDING, Prefill, read_static
from transform.arrays import Array
from transform.molmoe.tiling import Tiling

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue

Values: TypeAlias = "dict[str, OrtValue]"
PAST, PRESENT = "past_key_values.", "present."


class Call:
    """A session whose inputs and outputs are bound to fixed buffers; `capture` tells its CUDA graphs apart."""

    def __init__(self, session: Any, inputs: Values, outputs: Values, capture: str | None) -> None:
        self.session, self.inputs, self.outputs = session, inputs, outputs
        self._bind(capture)

    def _bind(self, capture: str | None) -> None:
        import onnxruntime

        self._options = onnxruntime.RunOptions()
        if capture is not None:
            self._options.add_run_config_entry("gpu_graph_id", capture)
        self._binding = self.session.io_binding()
        for name, value in self.inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self.outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, **arrays: Array) -> None:
        """Copy the arrays into the buffers of these inputs, then run on what all buffers hold."""
        for name, array in arrays.items():
            self.write(name, array)
        self.session.run_with_iobinding(self._binding, self._options)

    def write(self, name: str, array: Array) -> None:
        """Fill an input's buffer, whose shape the array must have."""
        info = next(i for i in self.session.get_inputs() if i.name == name)
        self.inputs[name].update_inplace(np.ascontiguousarray(array, dtype_of(info)))

    def read(self, name: str) -> Array:
        """A copy of an output."""
        return np.array(self.outputs[name].numpy())


class StaticGraphs(Graphs):
    """The static graphs of one variant directory and the state of one sequence.

    `in_place` False gives past and present buffers of their own; `prefix` begins the names of the decoders' files.
    """

    _call_type = Call

    def __init__(
        self,
        directory: Path,
        provider: str = "cpu",
        threads: int = 0,
        in_place: bool | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(directory, provider, threads)
        static = read_static(self.io)
        if static is None:
            raise RunError(f"{directory} has no static graphs. Export the variant with --static N.")
        self.io = {**self.io, "providers": self.io["static"]["providers"]}
        self.static, self.prefix = static, prefix
        self.length = 0  # slots in use
        self._sides = 1 if (provider != "tensorrt" if in_place is None else in_place) else 2
        self._side = 0
        self._buffers: dict[tuple[str, tuple[int, ...], int], Any] = {}
        self._sessions: dict[str, InferenceSession] = {}
        self._calls: dict[tuple[str, int], Call] = {}

    def prefill(self, ids: Array, image: Crops | None = None, tiling: Tiling | None = None) -> Array:
        """[1, s] ids of a new sequence, about one image or none -> logits [V] of the last one.

        Without image any tiling's graphs do: the shortest ones are taken unless `tiling` says otherwise. What is
        longer than their prompt goes in several calls, and token by token where no whole one is left in the cache.
        """
        count = ids.shape[1]
        if not 1 <= count <= self.static.cache:
            raise RunError(
                f"A prompt must fit the cache of {self.static.cache} tokens, it has {count}. Shorten it, or export "
                "with a larger --static."
            )
        graphs = self._graphs_for(image.tiling if image else tiling)
        self.length = 0
        return self._extend(graphs, ids, image)

    def extend(self, ids: Array, tiling: Tiling | None = None) -> Array:
        """[1, s] more ids of the sequence, as many at a time as a prompt has -> logits [V] of the last one."""
        return self._extend(self._graphs_for(tiling), ids, None)

    def _extend(self, graphs: Prefill, ids: Array, image: Crops | None) -> Array:
        at, logits = 0, np.zeros(0)
        while at < ids.shape[1]:
            if self.length + graphs.sequence > self.static.cache:
                logits = self.decode(int(ids[0, at]))
                at += 1
                continue
            new = ids[:, at : at + graphs.sequence]
            given = self._prepared(graphs, new, image if at == 0 else None)
            given["logits_index"] = np.array([new.shape[1] - 1])
            logits = self._step(graphs.file("prefill"), new.shape[1], given)
            at += new.shape[1]
        return logits

    def decode(self, token: int) -> Array:
        """One more token -> logits [V] after it; raises RunError where the cache is full."""
        if self.length >= self.static.cache:
            raise RunError(
                f"A token more must fit the cache, all {self.static.cache} slots are in use. Start a new sequence, or "
                "export with a larger --static."
            )
        ids = np.array([[token]])
        if not self.static.modality.sees_images:
            return self._step(DECODE, 1, {"input_ids": ids})
        self._call(DECODE_EMBEDDING).run(input_ids=ids)
        return self._step(DECODE, 1, {})

    def generate(self, ids: Array, image: Crops | None = None, max_new_tokens: int = 64) -> Iterator[int]:
        """Greedy ids one by one, the stop token last if the model came to one; ends where the cache is full."""
        if max_new_tokens < 1:
            raise RunError(f"At least one token must be asked for, got max_new_tokens={max_new_tokens}.")
        token = int(self.prefill(ids, image).argmax())
        yield token
        for _ in range(min(max_new_tokens - 1, self.static.cache - ids.shape[1])):
            if token in self.io["special_ids"]["eos"]:
                return
            token = int(self.decode(token).argmax())
            yield token

    def embeddings(self, ids: Array, image: Crops) -> Array:
        """[1, s] ids of one call about an image -> what its decoder is given [1, s, d]."""
        graphs = self._graphs_for(image.tiling)
        self._prepared(graphs, ids, image)
        return self._call(graphs.file("embedding")).read("inputs_embeds")[:, : ids.shape[1]]

    def fill_cache(self, number: float) -> None:
        """Write a number to all slots: what stood in a slot before it was used must not matter."""
        for side in range(self._sides):
            call = self._call(DECODE, side)
            for name, value in call.inputs.items():
                if name.startswith(PAST):
                    call.write(name, np.full(value.shape(), number))

    def _graphs_for(self, tiling: Tiling | None) -> Prefill:
        if tiling is None:
            return min(self.static.prefills, key=lambda p: p.sequence)
        for prefill in self.static.prefills:
            if prefill.tiling == tiling:
                return prefill
        known = ", ".join(f"{p.tiling[0]}×{p.tiling[1]}" for p in self.static.prefills if p.tiling)
        raise RunError(
            f"Every tiling has graphs of its own: the variant has those for {known or 'no image'}, the image has "
            f"{tiling[0]}×{tiling[1]} tiles. Cut it by the policy in io.json."
        )

    def _prepared(self, graphs: Prefill, ids: Array, image: Crops | None) -> dict[str, Array]:
        """The padded ids, or nothing where they were embedded (with the image's features) for the decoder."""
        padded = np.zeros((1, graphs.sequence), np.int64)
        padded[:, : ids.shape[1]] = ids
        if not self.static.modality.sees_images:
            return {"input_ids": padded}
        embedding = self._call(graphs.file("embedding"))
        if image is None:
            embedding.write("image_features", np.zeros(embedding.inputs["image_features"].shape()))
        else:
            self._call(graphs.file("vision")).run(images=image.images, image_masks=image.image_masks)
        embedding.run(input_ids=padded)
        return {}

    def _step(self, file: str, new: int, given: dict[str, Array]) -> Array:
        """Run a decoder on `new` more tokens."""
        call = self._call(file, self._side)
        mask = np.zeros((1, self.static.cache), np.int64)
        mask[:, : self.length + new] = 1
        call.run(attention_mask=mask, past_length=np.array([self.length]), **given)
        self.length += new
        self._side = (self._side + 1) % self._sides
        return call.read("logits").reshape(-1)

    def _call(self, file: str, side: int = 0) -> Call:
        """The graph of a file, bound; on side 1 past and present have changed places."""
        if (file, side) not in self._calls:
            if file not in self._sessions:
                decoder = file == DECODE or file.startswith("prefill")
                self._sessions[file] = self._open(f"{self.prefix if decoder else ''}{file}")
            session = self._sessions[file]
            inputs = {info.name: self._buffer(info, side) for info in session.get_inputs()}
            outputs = {info.name: self._buffer(info, side) for info in session.get_outputs()}
            capture = str(side) if self._sides > 1 else None
            self._calls[file, side] = self._call_type(session, inputs, outputs, capture)
        return self._calls[file, side]

    def _buffer(self, info: Any, side: int) -> Any:
        """The one buffer of a name and shape: what one graph writes, the next one reads under the same name."""
        import onnxruntime

        name, which = info.name, 0
        if name.startswith((PAST, PRESENT)):
            which = side if name.startswith(PAST) else (side + 1) % self._sides
            name = name.replace(PRESENT, PAST)
        key = (name, tuple(info.shape), which)
        if key not in self._buffers:
            device = "cpu" if self.provider == "cpu" else "cuda"
            zeros = np.zeros(info.shape, dtype_of(info))
            self._buffers[key] = onnxruntime.OrtValue.ortvalue_from_numpy(zeros, device, 0)
        return self._buffers[key]
