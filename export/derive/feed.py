"""Run a decoder graph on random tokens: a prefill and a decode step with the cache it gave."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.derive.blocks import Block
from export.derive.surgery import Opened
from export.run.session import open_session
from transform.arrays import Array
from transform.errors import VerificationError

PROMPT = 6
_TYPES = (1, 2, 3, 5, 6, 7, 9, 10, 11, 16)  # onnx.proto's numbers of what models are fed


class Feed:
    """Random inputs for one prefill and one decode step; raises LookupError where an input's meaning isn't known."""

    def __init__(self, opened: Opened, rng: np.random.Generator) -> None:
        import onnx

        decoder, network = opened.decoder, opened.network
        self.logits, self.blocks = decoder.logits, decoder.blocks
        cached = {name for block in decoder.blocks for name in block.cache}
        sizes = {v.name: v.type.tensor_type.shape.dim for v in (*network.inputs, *network.outputs)}
        self.first: dict[str, Array] = {}
        self.second: dict[str, Array] = {}
        if not sizes[decoder.logits] or any(len(block.cache) != len(block.present) for block in decoder.blocks):
            raise LookupError("the outputs must be logits with a shape, and as many of each block's cache as it takes")
        vocabulary = _size(sizes[decoder.logits][-1]) or 2
        for value in network.inputs:
            name = value.name
            kind = value.type.tensor_type.elem_type
            fixed = [_size(dim) for dim in sizes[name]]
            if kind not in _TYPES or not fixed:
                raise LookupError(f"the input {name!r} must be a tensor of numbers with a shape")
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
            if name in cached:
                if len(fixed) != 4 or not fixed[1] or fixed[2] or not fixed[3]:
                    raise LookupError(
                        f"the cache input {name!r} is {fixed}; only [batch, heads, cached, width] with a free number "
                        "of cached tokens is known"
                    )
                self.first[name] = np.zeros((1, fixed[1], 0, fixed[3]), dtype)
            elif name == decoder.tokens and dtype.kind == "i":
                ids = rng.integers(0, vocabulary, (1, PROMPT + 1)).astype(dtype)
                self.first[name], self.second[name] = ids[:, :PROMPT], ids[:, PROMPT:]
            elif name == decoder.tokens and fixed[-1]:
                rows = rng.standard_normal((1, PROMPT + 1, fixed[-1])).astype(dtype)
                self.first[name], self.second[name] = rows[:, :PROMPT], rows[:, PROMPT:]
            elif "mask" in name and len(fixed) == 2:
                self.first[name] = np.ones((1, PROMPT), dtype)
                self.second[name] = np.ones((1, PROMPT + 1), dtype)
            elif "position" in name and len(fixed) == 2:
                places = np.arange(PROMPT + 1, dtype=dtype)[None]
                self.first[name], self.second[name] = places[:, :PROMPT], places[:, PROMPT:]
            else:
                raise LookupError(f"nothing is known about the input {name!r}")

    def run(self, path: Path, options: Mapping[str, str]) -> tuple[Array, Array]:
        """Logits [1, s, V] of a prefill and of a decode step after it, finite; raises VerificationError."""
        session = open_session(path, options)
        prefill, cache = self._step(path, session, self.first, 0)
        return prefill, self._step(path, session, {**self.second, **cache}, PROMPT)[0]

    def _step(self, path: Path, session: Any, feed: dict[str, Array], past: int) -> tuple[Array, dict[str, Array]]:
        present = [name for block in self.blocks for name in block.present]
        try:
            logits, *values = session.run([self.logits, *present], feed)
        except Exception as error:  # onnxruntime has a dozen exception types without a common base
            reason = str(error).strip().splitlines()[0][:300]
            raise VerificationError(
                f"{path.name}: onnxruntime could not run it: {reason}. Please report this."
            ) from error
        new = PROMPT if past == 0 else 1
        if not np.isfinite(logits).all() or logits.shape[:2] != (1, new):
            raise VerificationError(
                f"{path.name} must give finite logits [1, {new}, …], got {logits.shape}. Please report this."
            )
        made = dict(zip(present, values, strict=True))
        cache = {}
        for block in self.blocks:
            for given, taken in _pairs(block):
                if made[taken].ndim != 4 or made[taken].shape[2] != past + new:
                    raise VerificationError(
                        f"{path.name}: {taken} must hold {past + new} tokens, got {made[taken].shape}."
                    )
                cache[given] = made[taken]
        return logits, cache


def _pairs(block: Block) -> list[tuple[str, str]]:
    """Cache inputs with the outputs that continue them: by the ends of their names, else in order."""
    ends = {name.rpartition(".")[2]: name for name in block.present}
    named = [(name, ends.get(name.rpartition(".")[2], "")) for name in block.cache]
    return named if all(taken for _, taken in named) else list(zip(block.cache, block.present, strict=True))


def _size(dim: Any) -> int | None:
    return dim.dim_value or (int(dim.dim_param) if dim.dim_param.isdecimal() else None)


def compute_dtype(opened: Opened) -> Any:
    """The type of the cache, which is the one the graph computes in."""
    import onnx

    cache = opened.decoder.blocks[0].cache[0]
    value = next(value for value in opened.network.inputs if value.name == cache)
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
