"""Variants with graphs for the ONNX tests, and a plain greedy loop over them as any runtime would write it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from export.files.genai import write_genai_config
from export.files.io_spec import write_io
from export.graph.emit import emit_graphs
from export.numpy_run import NumpySession
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.depth import drop_blocks
from transform.dtype import cast
from transform.forms import form_named
from transform.packed import write_packed
from transform.read import read_checkpoint
from transform.stack import stack_experts
from transform.top_k import set_top_k
from transform.write import write_checkpoint

FIXTURES = Path(__file__).parent / "fixtures" / "molmo"


def write_variant(
    source: Path,
    target: Path,
    keep: Sequence[int] | None = None,
    k: Any = None,
    crops: int | None = None,
    form: str = "cpu",
) -> Path:
    """A variant of `source` with its graphs, io.json and genai_config.json; k counts kept blocks if it is a list."""
    checkpoint: Checkpoint = read_checkpoint(source)
    if keep is not None:
        checkpoint = drop_blocks(checkpoint, keep)
    if k is not None:
        checkpoint = set_top_k(checkpoint, k)
    target.mkdir(parents=True)
    made = form_named(form)
    if made.bits:
        write_packed(checkpoint, target, made.bits)
    else:
        write_checkpoint(stack_experts(cast(checkpoint, "float16")) if made.stacked else checkpoint, target)
    written = read_checkpoint(target)
    emit_graphs(written, target, crops, made)
    write_io(written, target, {"tokens": None if crops is None else 144 * crops}, made)
    write_genai_config(written, target, made)
    return target


def session(directory: Path, name: str) -> Any:
    """A session with the options io.json asks for; numpy in float32 for the cuda form, which has no CPU kernel."""
    io = json.loads((directory / "io.json").read_text())
    if io["form"] == "cuda":
        return NumpySession(directory / name, widen=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for key, value in io["vision_session_options" if name.startswith("vision") else "session_options"].items():
        options.add_session_config_entry(key, value)
    if io["form"] == "int8":  # kernels for repacked 8-bit weights round activations
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(str(directory / name), options, providers=["CPUExecutionProvider"])


def empty_cache(text: Any, batch: int) -> dict[str, Array]:
    """Zero cached tokens for every block."""
    return {
        i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32)
        for i in text.get_inputs()
        if i.name.startswith("past_key_values.")
    }


def step(
    text: Any, given: Mapping[str, Array], mask: Array, cache: Mapping[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """One run of text.onnx -> (logits, the cache for the next one)."""
    names = [output.name for output in text.get_outputs()]
    results = dict(zip(names, text.run(names, {**given, "attention_mask": mask, **cache}), strict=True))
    logits = results.pop("logits")
    return logits, {name.replace("present.", "past_key_values."): value for name, value in results.items()}


def greedy(text: Any, embed: Any, prefill: Mapping[str, Array], mask: Array, count: int) -> tuple[Array, Array]:
    """Greedy ids [b, count] after a right-padded (or unpadded) prefill, and the prefill's logits."""
    batch = mask.shape[0]
    logits, cache = step(text, prefill, mask, empty_cache(text, batch))
    prefill_logits = logits
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)  # the last valid token of every row
    chosen = logits[np.arange(batch), last].argmax(axis=-1)
    ids = [chosen]
    while len(ids) < count:
        mask = np.concatenate([mask, np.ones((batch, 1), np.int64)], axis=1)
        logits, cache = step(text, embed(chosen[:, None]), mask, cache)
        chosen = logits[:, -1].argmax(axis=-1)
        ids.append(chosen)
    return np.stack(ids, axis=1), prefill_logits
